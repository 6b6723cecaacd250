"""Limits the memory that a dataset may take, and the references of an HDF5 file. docs/data.md lists the limits.

A few bytes can announce gigabytes: a PNG by its header, zlib by its ratio, an HDF5 dataset by its shape. An announced
size is compared with the declared one and with a limit before memory is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_robot.core.errors import DataError
from vla_robot.core.untrusted import shortened
from vla_robot.data.formats.hdf5_heaps import require_stored_texts, require_texts_at

if TYPE_CHECKING:
    import h5py
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_PIXELS = 2**24
"""Largest number of pixels of one frame: 16.8 million, two frames of 4K video."""
ALWAYS_PIXELS = 2**20
"""Number of pixels of a frame that are always allowed: a description may be wrong, and 3 MB do no harm."""
MAX_VALUE_BYTES = 2**26
"""Largest decompressed size of one value of one step: a depth image of 16 million pixels in float32."""
MAX_COLUMN_BYTES = 2**31
"""Largest size of one field in one episode, and of one read of a Parquet file."""
MAX_STEPS = 2**20
"""Largest number of steps in one episode: 29 hours at 10 Hz."""
MAX_EPISODES = 2**20
"""Largest number of episodes in a dataset or file that lists them one by one."""
BATCH_ROWS = 2**16
"""Largest number of rows of a Parquet file that are decoded together."""
MAX_ROWS = 2**26
"""Largest number of rows of one read of a Parquet file: 77 days at 10 Hz."""

MAX_HDF5_RATIO = 1100
"""Largest ratio of an HDF5 dataset's size to its size in the file. Deflate reaches 1032 at most."""
UNSTORED_BYTES = 2**24
"""Allowed size of an HDF5 dataset beyond that ratio: values that were never written take no space and read as zeros."""
MAX_ATTRIBUTE_VALUES = 64
MAX_LINKS = 16
"""Largest number of soft links in a chain in an HDF5 file."""
MAX_FIELDS = 4096
"""Largest number of fields of one step."""
MAX_GROUP_DEPTH = 8


def require_bytes(size: int, most: int, where: object) -> None:
    """Raise DataError when `size` is above `most` bytes."""
    if size > most:
        raise DataError(f"{where} asks for {size} bytes of memory; at most {most} are allowed.")


def require_pixels(width: int, height: int, declared: tuple[int | None, ...], where: object) -> None:
    """Raise DataError when a frame has more pixels than its dataset declares, or than any frame may have.

    Args:
        width: width of the frame by its header [px].
        height: height of the frame by its header [px].
        declared: shape of a frame in the dataset's description; () or None where it gives none.
        where: file, field and step, for the error message.
    """
    if width * height <= ALWAYS_PIXELS:
        return
    known = declared and all(declared)
    # The axes may be (H, W, C) or (C, H, W): the product includes the channels in either case.
    stated = math.prod(n or 0 for n in declared) if known else MAX_PIXELS
    most = min(max(stated, ALWAYS_PIXELS), MAX_PIXELS)
    if width * height > most:
        shape = f", and the dataset declares {' x '.join(map(str, declared))}" if known else ""
        raise DataError(f"{where}: the frame has {width} x {height} pixels{shape}; at most {most} are decoded.")


def read_parquet(file: pq.ParquetFile, columns: Sequence[str] | None, groups: Sequence[int], path: Path) -> pa.Table:
    """Read row groups of a Parquet file.

    Rows can take much more memory than space in the file: a dictionary stores a value once for any number of rows, and
    a null takes the whole width of a list of fixed size. Rows are therefore decoded in small batches, and their sizes
    are added up.

    Args:
        file: the open file.
        columns: names of the columns to read; None reads all.
        groups: numbers of the row groups.
        path: path of the file, for the error message.

    Raises:
        DataError: the groups have more than MAX_ROWS rows, or take more than MAX_COLUMN_BYTES.
    """
    import pyarrow as pa

    schema = file.schema_arrow if columns is None else pa.schema([file.schema_arrow.field(name) for name in columns])
    metas = [file.metadata.row_group(group) for group in groups]
    rows = sum(meta.num_rows for meta in metas)
    if not 0 <= rows <= MAX_ROWS:
        raise DataError(f"{path} has {rows} rows; at most {MAX_ROWS} are read at once.")
    # The sizes of single columns would be a closer bound, but pyarrow aborts the process where they are damaged.
    is_shared = any(_has_open_size(field.type) for field in schema)
    group_bytes = max((meta.total_byte_size for meta in metas), default=0) if is_shared else 0
    widest = max(group_bytes, sum(_row_bytes(field.type) for field in schema), 1)
    at_once = max(min(MAX_COLUMN_BYTES // 8 // widest, BATCH_ROWS), 1)
    batches: list[pa.RecordBatch] = []
    size = 0
    for batch in file.iter_batches(at_once, list(groups), None if columns is None else list(columns)):
        size += batch.nbytes
        require_bytes(size, MAX_COLUMN_BYTES, path)
        batches.append(batch)
    return pa.Table.from_batches(batches, schema if not batches else batches[0].schema)


def _has_open_size(kind: pa.DataType) -> bool:
    """Return whether values of a type have no fixed size, so that one stored value may stand for many rows."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        return _has_open_size(kind.storage_type)
    if pa.types.is_fixed_size_list(kind):
        return _has_open_size(kind.value_type)
    if pa.types.is_struct(kind):
        return any(_has_open_size(kind.field(i).type) for i in range(kind.num_fields))
    return not (pa.types.is_primitive(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_null(kind))


def _row_bytes(kind: pa.DataType) -> int:
    """Return the smallest size of a row in memory [bytes], also when it is null."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_fixed_size_list(kind):
        return kind.list_size * _row_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        return sum(_row_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return max(kind.bit_width // 8, 1) if pa.types.is_primitive(kind) or pa.types.is_fixed_size_binary(kind) else 16


def hdf5_find(group: Any, place: str, links: int = MAX_LINKS) -> Any:
    """Return the group or dataset at a path in an HDF5 file; links into other files are not followed.

    Args:
        group: group at which the path begins.
        place: names of links, joined by "/".
        links: number of soft links that may still be followed.

    Returns:
        The group or dataset; None when the path does not exist.

    Raises:
        DataError: a link on the path leads into another file, the dataset's values are in another file, or it asks for
            more memory than a file of its size can hold.
    """
    import h5py

    node = group
    for name in filter(None, place.split("/")):
        if not isinstance(node, h5py.Group):
            return None
        link: Any = node.get(name, getlink=True)
        if link is None:
            return None
        if isinstance(link, h5py.ExternalLink):
            raise DataError(
                f"{node.file.filename}: '{node.name}/{name}' is a link into another file, "
                f"{shortened(repr(link.filename))}. Such links are not followed, since they can name any file of this "
                "computer. Copy the data into one file (`h5repack`, or h5py's `copy` with expand_external)."
            )
        if isinstance(link, h5py.SoftLink):
            if not links:
                raise DataError(f"{node.file.filename}: '{node.name}/{name}' leads from link to link without an end.")
            start = node.file if link.path.startswith("/") else node
            node = hdf5_find(start, link.path, links - 1)
        else:
            node = node[name]
        if node is None:
            return None
    if isinstance(node, h5py.Dataset):
        _require_own(node)
    return node


def hdf5_datasets(group: Any, left_out: tuple[str, ...] = ()) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield the path and the dataset of every dataset below a group.

    Args:
        group: group at which to begin, and from which paths count.
        left_out: paths of groups that are not entered, each with a "/" at its end.

    Raises:
        DataError: as `hdf5_find`; or too many or too deep groups, such as those of a hard link to a group's parent.
    """
    import h5py

    waiting: list[tuple[str, Any, int]] = [("", group, MAX_GROUP_DEPTH)]
    seen = 0
    while waiting:
        prefix, node, depth = waiting.pop()
        for name in node:
            child = hdf5_find(node, name)
            path, seen = prefix + name, seen + 1
            if seen > MAX_FIELDS or depth == 0:
                raise DataError(
                    f"{group.file.filename}: '{group.name}' holds more than {MAX_FIELDS} fields, or groups more than "
                    f"{MAX_GROUP_DEPTH} deep."
                )
            if isinstance(child, h5py.Dataset):
                yield path, child
            elif isinstance(child, h5py.Group) and path + "/" not in left_out:
                waiting.append((path + "/", child, depth - 1))


def hdf5_attribute(node: Any, name: str) -> Any:
    """Return an attribute of a group or dataset; None when it does not exist, or is neither text nor number.

    Raises:
        DataError: the attribute has more than MAX_ATTRIBUTE_VALUES values, or announces more bytes than are stored.
    """
    import h5py

    if name not in node.attrs:
        return None
    attribute = node.attrs.get_id(name)
    kind, count = attribute.get_type(), attribute.get_space().get_simple_extent_npoints()
    where = f"{node.file.filename}: attribute '{name}' of '{node.name}'"
    if count > MAX_ATTRIBUTE_VALUES:
        raise DataError(f"{where} holds {count} values.")
    if kind.get_class() not in (h5py.h5t.STRING, h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.ENUM):
        return None
    require_bytes(kind.get_size() * count, node.file.id.get_filesize(), where)
    if isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str():
        require_stored_texts(node, name, count, where)
    return node.attrs[name]


def hdf5_texts(values: h5py.Dataset) -> list[str]:
    """Return the entries of a dataset of texts.

    Raises:
        DataError: there are more than MAX_EPISODES entries, or they take more than MAX_COLUMN_BYTES.
    """
    where = f"{values.file.filename}, '{values.name}'"
    if values.ndim != 1 or len(values) > MAX_EPISODES:
        raise DataError(f"{where} is no list of up to {MAX_EPISODES} texts, its shape is {values.shape}.")
    offset = values.id.get_offset()
    if offset is not None and values.dtype.kind == "O":
        require_texts_at(Path(values.file.filename), offset, len(values), values.file.userblock_size, where)
    # Many entries may refer to one text, so that each may be as long as the file: few are read at a time.
    rows = max(UNSTORED_BYTES // max(values.file.id.get_filesize(), 1), 1)
    texts: list[str] = []
    size = 0
    for start in range(0, len(values), rows):
        for entry in np.asarray(values[start : start + rows]).tolist():
            texts.append(entry.decode() if isinstance(entry, bytes) else str(entry))
            size += len(texts[-1])
        require_bytes(size, MAX_COLUMN_BYTES, where)
    return texts


def _require_own(values: h5py.Dataset) -> None:
    """Raise DataError unless a dataset's values are in its own file, which is large enough to hold them."""
    where = f"{values.file.filename}, '{values.name}'"
    elsewhere = "external storage" if values.id.get_create_plist().get_external_count() else ""
    elsewhere = "a virtual dataset" if values.is_virtual else elsewhere
    if elsewhere:
        raise DataError(
            f"{where}: its values lie in another file ({elsewhere}). They are not read, since it may be any file of "
            "this computer. Copy them into the file itself."
        )
    size = math.prod(values.shape or ()) * values.dtype.itemsize
    # The announced storage size may itself be larger than the file.
    stored = min(values.id.get_storage_size(), values.file.id.get_filesize())
    if size > MAX_HDF5_RATIO * stored + UNSTORED_BYTES:
        raise DataError(f"{where} asks for {size} bytes of memory, but the file stores {stored} bytes of it.")
    require_bytes(math.prod(values.chunks or ()) * values.dtype.itemsize, MAX_VALUE_BYTES * 4, f"{where}, one chunk,")
