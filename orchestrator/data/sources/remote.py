"""Open the filesystem that a URI names: pyarrow's own, or one of fsspec's where pyarrow has none.

S3 and what speaks like it take credentials and address from the usual variables (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL) and from the URI (`?endpoint_override=…&scheme=…&region=…`).
Imports: storage, pyarrow, fsspec.
"""

from __future__ import annotations

import urllib.parse
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from orchestrator.errors import SourceError
from orchestrator.storage import filesystem_of

_MENDS = {
    "hdfs": "hdfs:// needs a Hadoop client on this machine: Java's libjvm (JAVA_HOME), libhdfs.so (HADOOP_HOME or "
    "ARROW_LIBHDFS_DIR), and CLASSPATH as `hadoop classpath --glob` prints it",
    "s3": "check the bucket, AWS_ENDPOINT_URL or ?endpoint_override=HOST:PORT&scheme=http, and AWS_REGION",
}


def open_uri(uri: str) -> tuple[Any, str]:
    """A pyarrow filesystem, and the path in it. Raises SourceError where there is none for the URI."""
    scheme, _, rest = uri.partition("://")
    path, mark, query = rest.partition("?")
    quoted = f"{scheme}://{urllib.parse.quote(path, safe='/:@%!$&()+,;=~')}{mark}{query}"
    try:
        filesystem, base = filesystem_of(quoted)
    except pa.ArrowInvalid as error:
        if "Unrecognized filesystem type" not in str(error):
            raise _refused(uri, error) from error
        return _open_fsspec(uri)
    except (OSError, ValueError, NotImplementedError) as error:
        raise _refused(uri, error) from error
    return filesystem, base


def _open_fsspec(uri: str) -> tuple[Any, str]:
    import fsspec

    try:
        filesystem, base = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError, OSError) as error:
        raise _refused(uri, error) from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), base


def _refused(uri: str, error: Exception) -> SourceError:
    scheme = uri.partition("://")[0]
    return SourceError(
        f"data.source.path: '{uri}' cannot be opened: {str(error).splitlines()[0]}",
        _MENDS.get(scheme, "write a path, or a URI of s3://, gs://, abfs://, hdfs://, https:// or file://"),
    )
