#!/usr/bin/env python3
"""Where does this machine get Debian's packages of a release from? `sources.py [RELEASE [COMPONENT]]`: for apt.

Prints deb822 stanzas (sources.list(5)) of Debian's own archives, component main: of this machine's release, with its
updates and security fixes as far as the machine has them; or of another RELEASE (bullseye, sid, bookworm-backports)
from the same places. Server names come from the machine's sources alone: one line and exit status 1 when it has none.
"""

from __future__ import annotations

import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"  # package debian-archive-keyring: keys of all its releases
ROLLING = ("sid", "unstable", "experimental")  # never released, so without security fixes of their own
SECURITY = ("-security", "/updates")  # suffixes of suites; the second until Debian 10
SUFFIXES = ("", "-updates", *SECURITY)
# Options that say whether and how an archive is to be trusted; the others (languages, pdiffs) are the machine's affair.
OPTIONS = (
    "Signed-By", "Trusted", "Allow-Insecure", "Allow-Weak", "Allow-Downgrade-To-Insecure", "Check-Valid-Until",
    "Valid-Until-Min", "Valid-Until-Max", "Check-Date", "Date-Max-Future", "By-Hash", "InRelease-Path",
)  # fmt: skip
_FALSE = ("no", "false", "without", "off", "disable", "0")  # apt's StringToBool
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")  # apt passes over files of other names
_LINE = re.compile(r"\s*deb\s+(?:\[([^]]*)\]\s*)?(\"[^\"]*\"|[^\s\[]\S*)\s+(\S+)\s+(.*)")
_SCHEME = re.compile(r"(?!cdrom:)[a-z+]+:", re.IGNORECASE)


class Source(NamedTuple):
    """One suite of one archive, as the machine's sources name it."""

    uri: str  # with a slash at its end
    suite: str
    components: tuple[str, ...]
    options: dict[str, str]  # by the names of deb822


def of_line(line: str) -> Iterator[Source]:
    """The source of one line of a .list file, if it holds one of binary packages."""
    bare = re.sub(r"(\[[^]]*\])|#.*", r"\1", line)
    if found := _LINE.fullmatch(bare.rstrip("\n")):
        options = {}
        for word in shlex.split(found[1] or ""):
            name, sign, value = word.partition("=")
            options[_option(name + ("=" if sign else ""))] = value
        yield Source(_directory(found[2].strip('"')), found[3], tuple(found[4].split()), options)


def _option(name: str) -> str:
    """The name in a stanza of an option in a line: `arch-=` is Architectures-Remove."""
    name = name.removesuffix("=")
    change = {"+": "-Add", "-": "-Remove"}.get(name[-1:], "")
    plain = name[:-1] if change else name
    return {"arch": "Architectures"}.get(plain, plain.title()) + change


def of_stanza(stanza: str) -> Iterator[Source]:
    """The sources of one stanza of a .sources file."""
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line.startswith("#"):
            continue
        if line[:1] in " \t":
            fields[name] += "\n" + line
        else:
            name, _, value = line.partition(":")
            name = name.strip().title()
            fields[name] = value.strip()
    if fields.get("Enabled", "yes").lower() in _FALSE or "deb" not in fields.get("Types", "").split():
        return
    options = {name: value.rstrip() for name, value in fields.items() if name not in ("Types", "Uris", "Suites")}
    for uri in fields.get("Uris", "").split():
        for suite in fields.get("Suites", "").split():
            yield Source(_directory(uri), suite, tuple(fields.get("Components", "").split()), options)


def _directory(uri: str) -> str:
    return uri.rstrip("/") + "/"


def read(main: Path, parts: Path) -> Iterator[Source]:
    """All that the machine has: sources.list, and the files of sources.list.d in apt's order."""
    files = sorted(parts.iterdir()) if parts.is_dir() else []
    for path in [main, *files]:
        if not path.is_file() or not _FILE.fullmatch(path.name):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".sources":
            for stanza in re.split(r"\n(?:[ \t]*\n)+", text.strip("\n")):
                yield from of_stanza(stanza)
        elif path.suffix == ".list":
            for line in text.splitlines():
                yield from of_line(line)


def usable(source: Source, architecture: str) -> bool:
    """Whether packages of main can come from there: no CD, not for other processors only."""
    only = _words(source.options.get("Architectures", architecture))
    more = _words(source.options.get("Architectures-Add", ""))
    without = _words(source.options.get("Architectures-Remove", ""))
    return (
        "main" in source.components
        and _SCHEME.match(source.uri) is not None
        and architecture in {*only, *more} - {*without}
    )


def _words(value: str) -> list[str]:
    return re.split(r"[\s,]+", value.strip())


def known(sources: list[Source], said: str, distribution: str) -> list[Source]:
    """The sources with what apt has read of the archives themselves (`said`: lines of URI|suite|codename|origin).

    `stable` gets the release's name, and the archives of others are left out. Without lists yet, all stay as they are.
    """
    rows = (line.split("|") for line in said.splitlines())
    facts = {(uri, suite): (codename, origin) for uri, suite, codename, origin in rows}
    made = []
    for source in sources:
        codename, origin = facts.get((source.uri, source.suite), (source.suite, distribution))
        if origin.lower() in (distribution, "$(origin)"):  # apt leaves the word as it is where the archive has none
            made.append(source._replace(suite=source.suite if codename.startswith("$") else codename))
    return made


def archives(sources: list[Source], own: str) -> list[tuple[str, Source]]:
    """(suffix, source): the archives of the machine's release, or of sid where it follows that."""
    for release in (own, *ROLLING):
        found = [(suffix, each) for each in sources for suffix in SUFFIXES if each.suite == release + suffix]
        if any(not suffix for suffix, _ in found):
            return found
    return []


def wanted(found: list[tuple[str, Source]], own: str, release: str) -> list[Source]:
    """The sources of a release in these archives. Only the machine's own release has its updates looked at."""
    made = []
    for suffix, source in found:
        if release == own:
            made.append(source)
        elif not suffix:
            made.append(_other(source, release))
        elif suffix != "-updates" and release not in ROLLING and "-" not in release:
            made.append(_other(source, release + "-security"))
    return list({(each.uri, each.suite): each for each in made}.values())


def _other(source: Source, suite: str) -> Source:
    """The suite of another release: signed, it may be, by a key that this machine's own sources do not name."""
    keys = source.options.get("Signed-By", "")
    if "BEGIN" not in keys:
        keys = ", ".join(dict.fromkeys([*keys.replace(",", " ").split(), KEYRING]))
    return source._replace(suite=suite, options={**source.options, "Signed-By": keys})


def stanza(source: Source, component: str) -> str:
    """As apt and mmdebstrap read it in a file whose name ends in .sources."""
    words = ["Types: deb", f"URIs: {source.uri}", f"Suites: {source.suite}", f"Components: {component}"]
    options = [f"{name}: {source.options[name]}" for name in OPTIONS if source.options.get(name)]
    return "\n".join([*words, *options, ""])


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> None:
    """The sources on standard output, or one line and status 1."""
    if len(sys.argv) > 3:
        sys.exit(f"usage: {sys.argv[0]} [RELEASE [COMPONENT]]")
    system = platform.freedesktop_os_release()
    own = system.get("VERSION_CODENAME", "sid")
    release, component = (*sys.argv[1:], *(own, "main")[len(sys.argv) - 1 :])
    places = _said("apt-config", "shell", "main", "Dir::Etc::sourcelist/f", "parts", "Dir::Etc::sourceparts/d")
    where = {name: Path(value) for name, _, value in (word.partition("=") for word in shlex.split(places))}
    architecture = _said("dpkg", "--print-architecture").strip()
    sources = [each for each in read(where["main"], where["parts"]) if usable(each, architecture)]
    said = _said("apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(CODENAME)|$(ORIGIN)")
    made = wanted(archives(known(sources, said, system["ID"]), own), own, release)
    if not made:
        sys.exit(f"{sys.argv[0]}: no source of Debian's {own} main in {where['main']} or {where['parts']}: "
                 "add one, as sources.list(5) says")  # fmt: skip
    if release not in ROLLING and "-" not in release and not any(each.suite.endswith(SECURITY) for each in made):
        print(f"{sys.argv[0]}: {release} without security fixes: this machine's sources name none", file=sys.stderr)
    print("\n".join(stanza(source, component) for source in made), end="")


if __name__ == "__main__":
    main()
