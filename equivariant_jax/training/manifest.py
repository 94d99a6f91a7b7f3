"""What makes a directory a checkpoint: a manifest of its files and leaves, written last and checked first.

`manifest.json` holds a format number, whatever the writer adds (step, configuration, versions, a table of leaves), and
size and SHA-256 of every other file below the directory. It is renamed into place after all of them have reached the
disk, so its presence means that the directory is whole, and its hashes (one of them its own) tell whether it still is.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

__all__ = ["MANIFEST", "check_leaves", "commit", "find_problem", "read_manifest", "write_json"]

MANIFEST = "manifest.json"
_FORMAT = 1


def write_json(path: Path, value: Any) -> None:
    """Writes a file that is either absent or whole, even if the machine loses power.

    Args:
      path: file to write; `path` + `.partial` is used on the way.
      value: JSON.
    """
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as stream:
        json.dump(value, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path, sync: bool = False) -> dict[str, Any]:
    with path.open("rb") as stream:
        if sync:
            os.fsync(stream.fileno())
        return {"size": os.fstat(stream.fileno()).st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _files(directory: Path) -> list[str]:
    found = (path for path in directory.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(directory)) for path in found if not path.name.startswith(MANIFEST))


def commit(directory: Path, content: Mapping[str, Any]) -> None:
    """Turns a directory whose files are all written into a checkpoint.

    Args:
      directory: the directory.
      content: JSON to keep in the manifest beside the table of files.
    """
    names = _files(directory)
    with ThreadPoolExecutor(4) as pool:
        digests = pool.map(lambda name: _digest(directory / name, sync=True), names)
        files = dict(zip(names, digests, strict=True))
    for path in directory.rglob("*"):
        if path.is_dir():
            _sync_directory(path)
    # Through JSON and back, so that the hash is of what a reader will see (integer keys become strings, for one).
    content = json.loads(json.dumps({"format": _FORMAT, **content, "files": files}))
    write_json(directory / MANIFEST, {**content, "sha256": _digest_of(content)})
    _sync_directory(directory.parent)


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """Reads the manifest; None if there is none, it is damaged, or of another format."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        digest = manifest.pop("sha256")
        return manifest if manifest["format"] == _FORMAT and digest == _digest_of(manifest) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def find_problem(directory: Path, *, hashes: bool) -> str | None:
    """Says what is wrong with a checkpoint, or None if its files are what was written.

    Args:
      directory: the checkpoint.
      hashes: compare contents, not only sizes.

    Returns:
      The problem in words, naming the file, or None.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        return f"{MANIFEST} is missing or unreadable"
    try:
        files = manifest["files"]
        for name, expected in files.items():
            path = directory / name
            if not path.exists():
                return f"{name} is missing"
            if path.stat().st_size != expected["size"]:
                return f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
        if hashes:
            with ThreadPoolExecutor(4) as pool:
                for name, found in zip(files, pool.map(lambda n: _digest(directory / n), files), strict=True):
                    if found["sha256"] != files[name]["sha256"]:
                        return f"the content of {name} has changed since it was written"
    except (OSError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read ({error!r})"
    return None


def check_leaves(directory: Path, saved: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compares two tables `path -> {"shape": [...], "dtype": "..."}` of leaves.

    Args:
      directory: the checkpoint, for the message.
      saved: what the checkpoint holds.
      expected: what is to be restored.

    Raises:
      ValueError: naming the paths that differ.
    """
    differences = [f"'{path}' is in the checkpoint but not in the state" for path in saved if path not in expected]
    differences += [f"'{path}' is in the state but not in the checkpoint" for path in expected if path not in saved]
    for path in expected:
        for field in ("shape", "dtype"):
            if path in saved and saved[path][field] != expected[path][field]:
                differences.append(f"'{path}' has {field} {saved[path][field]}, the state has {expected[path][field]}")
    if differences:
        more = f" (and {len(differences) - 8} more)" if len(differences) > 8 else ""
        raise ValueError(
            f"{directory} does not fit the state: {'; '.join(differences[:8])}{more}. Restore with the model and "
            "optimiser that were saved, or start in another directory."
        )
