"""The path of the file: parse its URL and check that its location is suitable."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from nimburion.core.errors import ConfigurationError
from nimburion.core.text.redaction import redact_url

MOUNTS_FILE = Path("/proc/self/mounts")
BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")

NETWORK_FILE_SYSTEMS = frozenset(
    {
        "nfs",
        "nfs3",
        "nfs4",
        "cifs",
        "smb2",
        "smb3",
        "smbfs",
        "ncpfs",
        "afs",
        "coda",
        "davfs",
        "ceph",
        "glusterfs",
        "lustre",
        "beegfs",
        "gpfs",
        "vboxsf",
        "fuse.sshfs",
        "fuse.ceph",
        "fuse.glusterfs",
        "fuse.s3fs",
        "fuse.rclone",
        "fuse.davfs2",
        "fuse.gcsfuse",
    }
)


def parse_url(url: str) -> Path:
    """Return the path in a URL, like `sqlite:///relative.db` or `sqlite:////absolute.db`.

    Raises `ConfigurationError` for anything else.
    """
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    if scheme.lower() != "sqlite" or host or not slash or not path or "?" in path:
        raise ConfigurationError(
            f"{redact_url(url)!r} does not name a SQLite file; write sqlite:///jobs.db (relative "
            "to the working directory) or sqlite:////srv/app/jobs.db (absolute)"
        )
    return Path(unquote(path))


def check_path(path: Path, *, mounts: Path = MOUNTS_FILE) -> None:
    """Raise `ConfigurationError` if the path is a folder or is on a network file system.

    SQLite's locks do not work on network file systems.
    """
    if is_folder(path):
        raise ConfigurationError(f"{path} is a folder; name a file in it")
    kind = find_file_system(path, mounts)
    if kind in NETWORK_FILE_SYSTEMS:
        raise ConfigurationError(
            f"{path} is on a network file system ({kind}), where SQLite's locks do not hold; "
            "put it on a local disk, or use a backend with a server"
        )


def file_exists(path: Path) -> bool:
    """Return whether the path exists. True also if this user may not look: opening says why."""
    try:
        return path.exists()
    except OSError:
        return True


def is_folder(path: Path) -> bool:
    """Return whether the path is a folder; False if this user may not look."""
    try:
        return path.is_dir()
    except OSError:
        return False


def find_file_system(path: Path, mounts: Path) -> str | None:
    """Return the type of the file system that holds `path`; None if it is unknown."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    resolved = f"{path.resolve()}/"
    longest, kind = -1, None
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        mount_point = unescape_mount_field(fields[1]).rstrip("/") + "/"
        if resolved.startswith(mount_point) and len(mount_point) >= longest:
            longest, kind = len(mount_point), fields[2]
    return kind


def unescape_mount_field(field: str) -> str:
    """Decode a field of the mount table, which has blanks and backslashes as octal escapes."""
    for code, meant in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, meant)
    return field


def read_boot_id(source: Path = BOOT_ID_FILE) -> str:
    """Return the id of the current boot of the host; empty if the system provides none."""
    try:
        return source.read_text(encoding="ascii").strip()
    except OSError:
        return ""
