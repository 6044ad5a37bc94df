"""Texts for a model to read, in a folder: prose.txt and the like.

usage: texts.py LLAMA_CPP_SOURCE FOLDER prose|code|novel...

The novel is Jane Austen's Persuasion (1817, public domain) from Debian's package r-cran-janeaustenr, which is downloaded
and unpacked, not installed; where there is no apt-get it is left out. Prose and code are llama.cpp's own.
"""

import pathlib
import subprocess
import sys
import tempfile
import zlib


def novel(title):
    """The lines of one of the package's novels: R's serialised vectors of strings, each compressed, one after another."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["apt-get", "download", "-qq", "r-cran-janeaustenr"], cwd=folder, check=True, stderr=subprocess.DEVNULL, timeout=60)
        package = next(pathlib.Path(folder).glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
        data = next(pathlib.Path(folder).glob("**/data/Rdata.rdb")).read_bytes()
    while data:
        chunk = zlib.decompressobj()
        lines = list(strings(chunk.decompress(data[4:])))
        data = chunk.unused_data
        if lines[0] == title:
            return "\n".join(lines)
    raise LookupError(title)


def strings(vector):
    header = len(b"X\n") + 3 * 4
    position = header + 4 + int.from_bytes(vector[header : header + 4], "big")  # the name of the encoding
    count = int.from_bytes(vector[position + 4 : position + 8], "big")
    position += 8
    for _ in range(count):
        size = int.from_bytes(vector[position + 4 : position + 8], "big")
        position += 8 + size
        yield vector[position - size : position].decode()


def joined(source, names):
    return "".join((source / name).read_text() for name in names)


def main():
    source, folder, *wanted = sys.argv[1:]
    source, folder = pathlib.Path(source), pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    docs = [f"docs/{name}.md" for name in ("build", "install", "multimodal", "function-calling")]
    texts = {
        "prose": lambda: joined(source, [*docs, "tools/server/README.md", "README.md"]),
        "code": lambda: joined(source, ["src/llama-context.cpp", "src/llama-kv-cache.cpp"]),
        "novel": lambda: novel("Persuasion"),
    }
    for name in wanted:
        file = folder / f"{name}.txt"
        if name == "novel" and file.exists():
            continue
        try:
            text = texts[name]()
        except Exception as error:  # a text less is no reason to stop
            print(f"no text {name}: {error!r}", file=sys.stderr)
            continue
        part = folder / f"{name}.part"
        part.write_text(text)
        part.rename(file)


if __name__ == "__main__":
    main()
