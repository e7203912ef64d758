"""`guard install --root IMAGE`: whatever links an image holds, nothing is written or removed outside of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from splitlock._errors import SplitlockError
from splitlock.guard.install import NAMES, install, uninstall

_UNITS = "etc/systemd/system"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "image").mkdir()
    return tmp_path / "image"


def _put(image: Path, name: str, target: str) -> None:
    link = image / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)


def _names(top: Path) -> list[str]:
    return [name for _, directories, files in os.walk(top) for name in (*directories, *files)]


@pytest.mark.parametrize("place", ["etc", "etc/systemd", _UNITS, f"{_UNITS}/sysinit.target.wants"])
@pytest.mark.parametrize("way", ["absolute", "relative", "inside"])
def test_links_in_an_image(image: Path, place: str, way: str) -> None:
    up = "../" * (place.count("/") + 1)
    inside = image / "real"
    inside.mkdir()
    _put(image, place, {"absolute": f"{image.parent}/outside", "relative": f"{up}outside", "inside": "/real"}[way])
    if way == "inside":
        install(str(image), "refuse", command="splitlock")
        assert "splitlock-guard.service" in _names(inside)
        uninstall(str(image))
        assert not [name for name in _names(inside) if name.startswith("splitlock")]
    else:
        with pytest.raises(SplitlockError, match="install"):
            install(str(image), "refuse", command="splitlock")
    assert list((image.parent / "outside").iterdir()) == []


def test_a_unit_that_is_a_link_is_not_followed(image: Path) -> None:
    """As systemctl mask makes it; or to whatever the image's maker wants to be overwritten."""
    victim = image.parent / "outside" / "victim"
    victim.write_text("mine")
    _put(image, f"{_UNITS}/{NAMES[0]}", str(victim))
    with pytest.raises(SplitlockError, match=r"splitlock-guard\.service: a link \(masked\?\)"):
        install(str(image), "refuse", command="splitlock")
    assert victim.read_text() == "mine"
    uninstall(str(image))
    assert victim.read_text() == "mine"
    install(str(image), "refuse", command="splitlock")
    assert all((image / _UNITS / name).is_file() for name in NAMES)
