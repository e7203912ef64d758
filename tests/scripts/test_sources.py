"""sources.py reads what apt reads, finds a release's archives there, and says in one line where none is."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from modules.debian import ROOT

KEY = "/usr/share/keyrings/debian-archive-keyring.gpg"
SOURCES = ROOT / "src/splitlock/guest/bochs/sources.py"
EMBEDDED = (
    "-----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDMEYCQjIxYJKwYBBAHaRw8BAQdA\n -----END PGP PUBLIC KEY BLOCK-----"
)


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script."""
    spec = importlib.util.spec_from_file_location("sources", SOURCES)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["sources"] = module  # NamedTuple asks for it
    spec.loader.exec_module(module)
    yield module
    del sys.modules["sources"]


class Machine(NamedTuple):
    """A machine's sources, and apt's configuration that names them."""

    main: Path
    parts: Path
    environment: dict[str, str]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine without sources."""
    made = Machine(tmp_path / "sources.list", tmp_path / "parts", {**os.environ, "APT_CONFIG": str(tmp_path / "conf")})
    made.parts.mkdir()
    (tmp_path / "lists/partial").mkdir(parents=True)
    (tmp_path / "conf").write_text(
        f'Dir::Etc::sourcelist "{made.main}";\nDir::Etc::sourceparts "{made.parts}";\n'
        f'Dir::State::lists "{tmp_path}/lists";\n'
    )
    return made


def apts(machine: Machine) -> set[tuple[str, str]]:
    """(URI, suite) of the sources with binary packages of main for this processor, as apt reads them."""
    command = ["apt-get", "update", "--print-uris"]
    done = subprocess.run(command, env=machine.environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    found = re.findall(r"'(\S+/)dists/(\S+)/main/binary-amd64/Packages\.xz'", done.stdout)
    return {(uri, suite) for uri, suite in found if not uri.startswith("cdrom:")}


def line(random: random.Random, host: str) -> str:
    """One source in one line, as people and installers write them."""
    kind = random.choice(["deb", "deb", "deb", "deb-src", "# deb", "  deb"])
    options = random.sample(
        ["arch=amd64", "arch=arm64", "arch=amd64,i386", "arch-=amd64", "arch+=i386", f"signed-by={KEY}", "trusted=yes",
         "check-valid-until=no", "lang=none", "by-hash=force"], random.randint(0, 3),
    )  # fmt: skip
    if len({option.rstrip("0123456789").split("=")[0].rstrip("+-") for option in options}) < len(options):
        options = options[:1]
    gap = random.choice([" ", "  ", "\t"])
    start = random.choice(["[{}]", "[ {} ]"]).format(gap.join(options)) + gap if options else ""
    scheme = random.choice(["http://", "https://", "mirror+file:/etc/apt/", "mirror+http://", "file:/srv/", "cdrom:"])
    uri = (
        f"cdrom:[CD {host}]" if scheme == "cdrom:" else scheme + host + random.choice(["/debian", "/debian/", "/a/b/"])
    )
    suite = random.choice(["bookworm", "bookworm-updates", "sid", "stable"])
    components = random.choice(["main", "contrib main", "contrib", "main non-free-firmware"])
    return f"{kind}{gap}{start}{uri}{gap}{suite}{gap}{components}{random.choice(['', '  ', ' # main'])}"


def fields(random: random.Random, host: str) -> str:
    """Some sources in a stanza."""
    uris = [f"https://{host}/debian", f"http://two.{host}/debian/"][: random.randint(1, 2)]
    suites = random.choice([["bookworm"], ["bookworm", "bookworm-updates"], ["sid"]])
    lines = [
        f"Types: {random.choice(['deb', 'deb-src', 'deb deb-src'])}",
        f"URIs: {' '.join(uris)}",
        f"Suites:{random.choice([' ', '  '])}{' '.join(suites)}",
        f"Components: {random.choice(['main', 'contrib', 'main contrib', 'contrib' + chr(10) + '  main'])}",
    ]
    lines += random.sample(
        [f"Enabled: {random.choice(['yes', 'no', 'false', 'true', 'No'])}", f"Signed-By: {KEY}", "# Suites: none",
         f"Architectures: {random.choice(['amd64', 'arm64', 'amd64 arm64'])}", "Check-Valid-Until: no"],
        random.randint(0, 4),
    )  # fmt: skip
    if not any(each.startswith("Signed-By") for each in lines) and random.random() < 0.3:
        lines.append(f"Signed-By:\n {EMBEDDED}")
    random.shuffle(lines)
    if random.random() < 0.5:
        lines = [each.replace("Types:", "types:").replace("URIs:", "uris:") for each in lines]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("seed", range(8))
def test_as_apt_reads_them(script: ModuleType, machine: Machine, seed: int) -> None:
    """Files of every shape: what apt would fetch Packages of main from, and nothing else."""
    chance = random.Random(seed)
    machine.main.write_text("\n".join(line(chance, f"m{n}.example") for n in range(20)) + "\n")
    for number, name in enumerate(
        ["a.list", "b.list.disabled", "c d.list", "z.sources", "off.sources.save", ".h.list"]
    ):
        write = fields if "sources" in name else line
        hosts = [f"h{number}-{n}.example" for n in range(15)]
        (machine.parts / name).write_text("\n".join(write(chance, host) for host in hosts) + "\n")
    found = [each for each in script.read(machine.main, machine.parts) if script.usable(each, "amd64")]
    assert {(each.uri, each.suite) for each in found} == apts(machine)
    assert len(found) > 5


ARCHIVES = {
    "a line each": (
        "deb [signed-by=/k] http://m.example/debian bookworm main\ndeb http://m.example/debian bookworm-updates main\n"
        "deb http://s.example/fixes bookworm-security main\n",
        "http://m.example/debian/ http://s.example/fixes/",
    ),
    "a CD first, and the archive through a list of mirrors": (
        "deb cdrom:[Debian 12]/ bookworm main\ndeb mirror+file:/etc/apt/mirrors.list bookworm main\n",
        "mirror+file:/etc/apt/mirrors.list/",
    ),
    "others' archives": (
        "deb http://other.example/apt bookworm-pgdg main\ndeb http://other.example/docker bookworm stable\n"
        "deb http://m.example/pool bookworm main\n",
        "http://m.example/pool/",
    ),
    "sid": ("deb http://m.example/debian sid main\n", "http://m.example/debian/"),
}


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("release", ["bookworm", "bullseye", "sid", "bookworm-backports"])
def test_another_release(script: ModuleType, machine: Machine, name: str, release: str) -> None:
    """From the same places, security fixes too where the release has them and the machine knows from where."""
    text, right = ARCHIVES[name]
    machine.main.write_text(text)
    sources = [each for each in script.read(machine.main, machine.parts) if script.usable(each, "amd64")]
    found = script.wanted(script.archives(sources, "bookworm"), "bookworm", release)
    main, *security = right.split()
    suites = {(each.uri, each.suite) for each in found}
    if release == "bookworm":
        assert {uri for uri, _ in suites} == {main, *security}
        assert suites <= {(each.uri, each.suite) for each in sources}
        return
    released = release == "bullseye"
    assert suites == {(main, release), *((uri, f"{release}-security") for uri in security if released)}
    assert all(KEY in each.options["Signed-By"] for each in found)


def test_stanzas_are_apts(script: ModuleType, machine: Machine) -> None:
    """What is printed, apt reads as it was meant; an embedded key and the options of trust are in it."""
    (machine.parts / "one.sources").write_text(
        "Types: deb\nURIs: http://m.example/debian\nSuites: bookworm\nComponents: main\nTrusted: yes\n"
        f"Languages: de\nSigned-By:\n {EMBEDDED}\n"
    )
    machine.main.write_text("deb [trusted=yes check-valid-until=no] http://s.example/s bookworm-security main\n")
    sources = list(script.read(machine.main, machine.parts))
    right = apts(machine)
    machine.main.unlink()
    printed = "\n".join(script.stanza(each, "main") for each in sources)
    (machine.parts / "one.sources").write_text(printed)
    assert apts(machine) == right
    assert printed.count("Trusted: yes") == 2
    assert "Check-Valid-Until: no" in printed
    assert EMBEDDED in printed
    assert "Languages" not in printed


def test_what_apt_knows(script: ModuleType) -> None:
    """An archive's own word says which release `stable` is, and which archives are not Debian's."""
    uri = ["http://m.example/debian/", "http://other.example/", "http://new.example/"]
    sources = [
        script.Source(uri[0], "stable", ("main",), {}),
        *(script.Source(u, "bookworm", ("main",), {}) for u in uri),
    ]
    said = f"{uri[0]}|stable|bookworm|Debian\n{uri[1]}|bookworm|bookworm|Somebody\n"
    said += f"{uri[0]}|bookworm|$(CODENAME)|$(ORIGIN)\n"
    found = [(each.uri, each.suite) for each in script.known(sources, said, "debian")]
    assert found == [(uri[0], "bookworm"), (uri[0], "bookworm"), (uri[2], "bookworm")]


@pytest.mark.parametrize(
    "command",
    ["sources.py", "sources.py sid", "apt-from.sh sid DIR download make", "cloud.sh DIR none.deb", "guest.sh DIR"],
)
@pytest.mark.parametrize("text", ["", "deb cdrom:[CD]/ RELEASE main\n", "deb http://x.example/y RELEASE contrib\n"])
def test_no_sources(machine: Machine, tmp_path: Path, command: str, text: str) -> None:
    """One line says what is missing and what to do; no server is made up."""
    release = subprocess.check_output(["sh", "-c", ". /etc/os-release; echo $VERSION_CODENAME"], text=True).strip()
    machine.main.write_text(text.replace("RELEASE", release))
    words = [str(tmp_path / "out") if word == "DIR" else word for word in command.split()]
    words[0] = str(SOURCES if words[0] == SOURCES.name else ROOT / "scripts" / words[0])
    done = subprocess.run(words, env=machine.environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        rf".*/sources\.py: no source of Debian's \w+ main in {machine.main} or .*: add one.*\n", done.stderr
    )


def test_no_server_is_named() -> None:
    """Where packages come from is the machine's affair: no file of ours names a server of packages."""
    server = re.compile(r"//[\w.-]*(debian|ubuntu|pypi|pythonhosted|npmjs)\.(org|com|net)\b(?!/(doc|project)\b)")
    files = [
        path for name in ("scripts", "src", "tests", "benchmarks", "docs", ".ci") for path in (ROOT / name).rglob("*")
    ]
    text = [
        path
        for path in [*files, *ROOT.glob("*")]
        if path.suffix in (".sh", ".py", ".md", ".toml", ".c", "") and path.is_file()
    ]
    assert len(text) > 300
    named = [path for path in text if server.search(path.read_text(encoding="utf-8", errors="replace"))]
    assert not named
