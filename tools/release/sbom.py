"""The bill of materials of a wheel: CycloneDX, of what packaging/requirements.lock pins and nothing else.

Licences are those that the installed packages state, which must be the pinned ones. The same wheel and lock make the
same bytes: nothing in it is random, and its time is the commit's.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from tools.release.lock import Pin

# What packages without a License-Expression call their licence, and what SPDX does.
_SPDX = {
    "Apache 2.0": "Apache-2.0",
    "ISC License": "ISC",
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: MIT License": "MIT",
    "License :: OSI Approved :: Python Software Foundation License": "PSF-2.0",
}
# "BSD", says the package; which one, says its source.
_READ = {"nvidia-ml-py": "BSD-3-Clause"}
_KNOWN = ("Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "PSF-2.0")


class NotAsPinned(Exception):
    """A package is not installed, or not in the version of the lock."""


def bill(wheel: Path, version: str, pins: Iterable[Pin], made_s: int) -> str:
    """The wheel's, as JSON. made_s: the time that it bears, in seconds since 1970. Raise NotAsPinned."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    root = _memscaler(wheel, version, digest)
    pinned = [pin for pin in pins if pin.ever]
    parts = {pin.name: _component(pin) for pin in pinned}
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"sha256:{digest}"))
    bom.metadata.timestamp = datetime.fromtimestamp(made_s, UTC)
    bom.metadata.component = root
    for pin in pinned:
        bom.components.add(parts[pin.name])
    from_distribution = _bcc()
    bom.components.add(from_distribution)
    direct = [parts[pin.name] for pin in pinned if any(each.startswith("memscaler ") for each in pin.via)]
    bom.register_dependency(root, [*direct, from_distribution])
    for name, part in parts.items():
        bom.register_dependency(part, [parts[pin.name] for pin in pinned if name in pin.via])
    text = JsonV1Dot6(bom).output_as_string(indent=2) + "\n"
    if wrong := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise ValueError(f"the bill of materials does not satisfy its schema: {wrong}")
    return text


def licence(name: str) -> str:
    """What the installed package says that its licence is, in SPDX's words where they are known."""
    said = importlib.metadata.metadata(name)
    expression = str(said.get("License-Expression") or _READ.get(name, ""))
    field = str(said.get("License") or "")
    classifiers = [each for each in said.get_all("Classifier", []) if each.startswith("License ::")]
    for word in (field, *classifiers):
        expression = expression or _SPDX.get(word, word if word in _KNOWN else "")
    return expression or field.partition("\n")[0] or "unknown"


def _memscaler(wheel: Path, version: str, sha256: str) -> Component:
    return Component(
        name="memscaler",
        version=version,
        type=ComponentType.APPLICATION,
        bom_ref=f"memscaler=={version}",
        licenses=[LicenseFactory().make_from_string("Apache-2.0")],
        purl=PackageURL("pypi", None, "memscaler", version),
        hashes=[_sha256(sha256)],
        properties=[Property(name="memscaler:file", value=wheel.name)],
    )


def _component(pin: Pin) -> Component:
    try:
        there = importlib.metadata.version(pin.name)
    except importlib.metadata.PackageNotFoundError as error:
        raise NotAsPinned(f"{pin.name} {pin.version} is not installed") from error
    if there != str(pin.version):
        raise NotAsPinned(f"{pin.name} {there} is installed, {pin.version} is pinned")
    version = str(pin.version)
    # The hashes are those of all its files: which one is installed depends on the machine.
    files = ExternalReference(
        type=ExternalReferenceType.DISTRIBUTION,
        url=XsUri(f"https://pypi.org/project/{pin.name}/{version}/#files"),
        hashes=[_sha256(each) for each in pin.sha256],
    )
    return Component(
        name=pin.name,
        version=version,
        type=ComponentType.LIBRARY,
        bom_ref=f"{pin.name}=={version}",
        licenses=[LicenseFactory().make_from_string(licence(pin.name))],
        purl=PackageURL("pypi", None, pin.name, version),
        external_references=[files],
    )


def _bcc() -> Component:
    """It comes from the distribution, in the version that it has there."""
    return Component(
        name="bcc",
        type=ComponentType.LIBRARY,
        bom_ref="bcc",
        description="the distribution's (Debian: python3-bpfcc), in its version; not pinned",
        licenses=[LicenseFactory().make_from_string("Apache-2.0")],
    )


def _sha256(value: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=value)
