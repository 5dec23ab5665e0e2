"""`model.safetensors`: the parameters alone, whole, as torch and transformers read them."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np

from shoal.errors import ConfigurationError, SnapshotError
from shoal.storage import manifest as manifests
from shoal.storage import tensors
from shoal.storage.hashed import CHUNK_BYTES, Progress, Reader, Writer, compare, opened, quietly
from shoal.storage.manifest import MODEL, File
from shoal.storage.place import Place, place
from shoal.storage.shard_file import PARAMETERS, Pieces
from shoal.vocabulary import TableSpec

_DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


def write_model(target: Place, pieces: Pieces, spec: TableSpec) -> File:
    """Write the tensors of `spec` under their names, in their shapes and dtypes, from the float32 masters.

    One block is in memory at a time. SnapshotError if elements are missing, or if it cannot be written.
    """
    dtypes = {item.name: _DTYPES[item.dtype] for item in spec.tensors}
    elements = {item.name: item.elements for item in spec.tensors}
    places = tensors.in_order((item.name, dtypes[item.name], item.shape) for item in spec.tensors)
    with target.create(MODEL) as file, np.errstate(over="ignore"):  # beyond float16 is infinity, as on the wire
        writer = Writer(file)
        writer.write(tensors.header(places, {"format": "pt"}))  # transformers asks for "pt"
        for item in places:
            filled = 0
            for start, piece in pieces.of(item.name, PARAMETERS):
                if start != filled:
                    break
                writer.write(tensors.as_bytes(piece.astype(dtypes[item.name], copy=False)))
                filled += piece.size
            if filled != elements[item.name]:
                raise SnapshotError(
                    f"{target}: {filled} of the {elements[item.name]} elements of {item.name!r} are there, "
                    "counted from its first"
                )
    return writer.written(MODEL)


def export(directory: Path | str, out: Path | str, progress: Progress = quietly) -> str:
    """Copy a snapshot's model to `out`, a file or a directory that is there; returns the file's path or URL.

    Every byte is checked on its way. Damage if it is not as it was written, ConfigurationError for an `out` that
    exists or does not end in .safetensors.
    """
    source = place(directory)
    file = manifests.read(source).model
    folder, name = _destination(out)
    with opened(source, file) as stream, folder.create(name) as copy:
        reader, writer = Reader(stream, progress), Writer(copy)
        buffer = memoryview(bytearray(min(CHUNK_BYTES, file.size_bytes)))
        for start in range(0, file.size_bytes, CHUNK_BYTES):
            piece = buffer[: file.size_bytes - start]
            reader.read_into(piece)
            writer.write(piece)
        compare(source, file, reader)
    return folder.at(name)


def _destination(out: Path | str) -> tuple[Place, str]:
    text = str(out)
    folder, name = (place(text), MODEL) if Path(text).is_dir() else (place(text).parent, place(text).name)
    if not name.endswith(".safetensors"):
        raise ConfigurationError(f"cannot export to {out}: the name must end in .safetensors, the only format there is")
    if name in folder.names():
        raise ConfigurationError(f"cannot export to {folder.at(name)}: it exists; remove it, or give another name")
    return folder, name
