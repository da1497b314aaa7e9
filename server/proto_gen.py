"""Generate server/pb from proto/: `python -m server.proto_gen` writes, `--check` fails on any difference.

protoc names its outputs and imports after the path under proto/ (`wavllm/v1/speech_pb2`), which would ask
for a top-level package `wavllm`. The stubs live in `server.pb` instead: the files are taken out of their
folder, and the one import between them is rewritten. The descriptor keeps the canonical name
`wavllm/v1/speech.proto`, which is what reflection shows and what a client's own stubs agree with.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO_DIR = ROOT / "proto"
PROTO_FILE = "wavllm/v1/speech.proto"
OUTPUT_DIR = ROOT / "server" / "pb"
OUTPUTS = ("speech_pb2.py", "speech_pb2.pyi", "speech_pb2_grpc.py")
PACKAGE_IMPORT = re.compile(r"^from wavllm\.v1 import speech_pb2", re.MULTILINE)


class GenerateError(Exception):
    """protoc failed, or wrote something that this module does not understand."""


def generate() -> dict[str, str]:
    """Run protoc. Returns file names in `server/pb` with their contents. Raises GenerateError."""
    with tempfile.TemporaryDirectory() as directory:
        _run_protoc(directory)
        written = Path(directory) / Path(PROTO_FILE).parent
        contents = {name: (written / name).read_text(encoding="utf-8") for name in OUTPUTS}
    contents["speech_pb2_grpc.py"] = _rewrite_import(contents["speech_pb2_grpc.py"])
    return contents


def _run_protoc(directory: str) -> None:
    outputs = [f"--{kind}={directory}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO_DIR}", *outputs, PROTO_FILE]
    if subprocess.run(command, check=False).returncode != 0:
        raise GenerateError(f"protoc could not compile {PROTO_FILE}")


def _rewrite_import(source: str) -> str:
    """Point the gRPC stub's import of its messages at `server.pb`."""
    rewritten, count = PACKAGE_IMPORT.subn("from server.pb import speech_pb2", source)
    if count != 1:
        raise GenerateError(f"expected one import of wavllm.v1.speech_pb2 in the gRPC stub, found {count}")
    return rewritten


def differing(contents: dict[str, str]) -> list[str]:
    """Names of the files in `server/pb` that are missing or not what `contents` says."""
    return [name for name, text in contents.items() if _read(OUTPUT_DIR / name) != text]


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def main(argv: list[str] | None = None) -> int:
    """Write the stubs, or with `--check` compare them. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the stubs differ")
    check: bool = parser.parse_args(argv).check
    contents = generate()
    stale = differing(contents)
    if check:
        if stale:
            sys.stderr.write(f"server/pb differs from proto/: {', '.join(stale)}; run `make proto`\n")
        return 1 if stale else 0
    for name in stale:
        (OUTPUT_DIR / name).write_text(contents[name], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
