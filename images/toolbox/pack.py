"""Packs a static busybox as an OCI archive. The same busybox gives the same bytes: no times, no owners but root."""

import hashlib
import io
import json
import platform
import subprocess
import sys
import tarfile

NAME = "mini.local/toolbox:1"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DIRECTORIES = ["bin", "dev", "etc", "home", "proc", "root", "sbin", "sys", "tmp", "usr", "usr/bin", "usr/sbin", "var", "var/tmp"]
FILES = {
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "etc/shells": "/bin/sh\n/bin/ash\n",
}
MODES = {"root": 0o700, "tmp": 0o1777, "var/tmp": 0o1777}


def entry(name, kind, mode, size=0, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size, info.linkname = kind, mode, size, target
    return info


def layer(busybox):
    """The root file system: busybox and a symbolic link for each of its applets."""
    with open(busybox, "rb") as file:
        binary = file.read()
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
    links = {f"bin/{applet}": "busybox" for applet in applets if applet != "busybox"}
    links["usr/bin/env"] = "../../bin/busybox"  # where scripts look for it
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in DIRECTORIES:
            tar.addfile(entry(name, tarfile.DIRTYPE, MODES.get(name, 0o755)))
        tar.addfile(entry("bin/busybox", tarfile.REGTYPE, 0o755, len(binary)), io.BytesIO(binary))
        for name, target in sorted(links.items()):
            tar.addfile(entry(name, tarfile.SYMTYPE, 0o777, target=target))
        for name, text in sorted(FILES.items()):
            tar.addfile(entry(name, tarfile.REGTYPE, 0o644, len(text)), io.BytesIO(text.encode()))
    return out.getvalue()


def main(busybox, version, path):
    root = layer(busybox)
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    blobs = {}

    def blob(content, media_type):
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": f"sha256:{digest}", "size": len(content)}

    def encode(value):
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    layer_descriptor = blob(root, "layer.v1.tar")
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Cmd": ["sh"],
            "Env": [f"PATH={PATH}"],
            "Labels": {
                "org.opencontainers.image.title": "toolbox",
                "org.opencontainers.image.description": "A shell: busybox-static of Debian",
                "org.opencontainers.image.version": version,
                "org.opencontainers.image.licenses": "GPL-2.0-only",
                "org.opencontainers.image.source": f"Debian source package busybox, binary version {version}",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [layer_descriptor["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(encode(config), "config.v1+json"),
        "layers": [layer_descriptor],
    }
    descriptor = blob(encode(manifest), "manifest.v1+json")
    descriptor["annotations"] = {
        "io.containerd.image.name": NAME,
        "org.opencontainers.image.ref.name": NAME.rsplit(":", 1)[1],
    }
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [descriptor]}
    files = {"oci-layout": encode({"imageLayoutVersion": "1.0.0"}), "index.json": encode(index), **blobs}
    with tarfile.open(path, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files.items():
            tar.addfile(entry(name, tarfile.REGTYPE, 0o644, len(content)), io.BytesIO(content))
    print(f"{path}: {NAME}, {descriptor['digest']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
