"""Real public text from Debian's packages: manuals as documents, package descriptions as conversations. Deterministic."""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from phi3mobile.errors import InputError
from phi3mobile.text.chat import KNOWN_TEMPLATES

PACKAGES = ("jargon-text", "debian-policy", "debian-reference-en", "developers-reference", "maint-guide", "python3.11-doc")
TRANSLATIONS = tuple(
    f"{book}-{language}"
    for book, languages in (
        ("debian-reference", ("de", "es", "fr", "it")),
        ("developers-reference", ("de", "fr", "it")),
        ("maint-guide", ("de", "es", "fr")),
        ("aptitude-doc", ("es", "fr")),
    )
    for language in languages
)  # what an unfiltered crawl of English manuals brings along
CONTROL = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")  # ids 0 to 4
SECTIONS = ("perl", "python", "games", "fonts", "doc", "javascript")


def download(folder: Path, packages: tuple[str, ...] = PACKAGES) -> Path:
    """The packages' files under `folder`; needs Debian's apt-get and dpkg-deb."""
    done = folder / "done"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["apt-get", "download", "-qq", *packages], cwd=folder, check=True, stderr=subprocess.DEVNULL)
            for package in sorted(folder.glob("*.deb")):
                subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise InputError(f"the corpus is Debian packages ({error}); run on Debian, after apt-get update") from None
        done.touch()
    return folder


def documents(folder: Path) -> Iterator[tuple[str, str, bool]]:
    """(page's name without suffixes, file's text, whether it was written as plain text). Pages appear as HTML, with all that
    surrounds their text, and some as sources too: what a crawl would find."""
    for path in sorted(folder.rglob("*")):
        kind = "".join(path.suffixes[-2:])
        if not path.is_file() or not re.search(r"\.(html|txt|txt\.gz|rst\.txt|Debian\.gz|gz)$", kind):
            continue
        try:
            raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            text = raw.decode("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        name = "/".join(path.parts[-2:]).split(".")[0].replace("_sources/", "")
        yield name, text, path.suffix != ".html"


def without_tags(text: str) -> str:
    """What is left of a page without any extraction: menus and scripts stay."""
    return html.unescape(re.sub(r"<[^>]+>", " ", text))


def _parts(text: str, size: int = 40_000) -> list[str]:
    """Long files in pieces at empty lines."""
    parts, start = [], 0
    while len(text) - start > 1.5 * size:
        cut = text.find("\n\n", start + size, start + 2 * size)
        cut = start + size if cut < 0 else cut
        parts.append(text[start:cut])
        start = cut
    return [*parts, text[start:]]


def write_corpus(source: Path, translations: Path, out: Path) -> dict[str, int]:
    """out/crawl/, raw/, broad/, strict/, held-out/: one docs.jsonl each. Held-out pages are in none of the others, in no form.

    crawl: every file as it is, translations too. raw: the same without tags, in pieces. strict: pages written as plain text,
    mostly letters. broad: the others, translations left out. The filters come later.
    """
    files = {}
    counts = dict.fromkeys(("crawl", "raw", "broad", "strict", "held-out"), 0)
    for name in counts:
        (out / name).mkdir(parents=True, exist_ok=True)
        files[name] = (out / name / "docs.jsonl").open("w")

    def write(kind: str, name: str, text: str) -> None:
        files[kind].write(json.dumps({"text": text, "id": name}) + "\n")
        counts[kind] += 1

    for folder in (source, translations):
        for name, whole, plain in documents(folder):
            held_out = _held_out(name)
            if not held_out:
                for index, part in enumerate(_parts(whole) if plain else [whole]):  # HTML is cut once its tags are gone
                    write("crawl", f"{name}#{index}" if index else name, part)
            for index, text in enumerate(_parts(whole if plain else without_tags(whole))):
                prose = sum(c.isalpha() or c in " ,.\n" for c in text) / max(1, len(text))
                strict = plain and prose > 0.9 and len(text) > 500
                kinds = (["held-out"] if strict else []) if held_out else ["raw", "strict" if strict else "broad"]
                for kind in kinds:
                    if folder == source or kind == "raw":
                        write(kind, f"{name}#{index}" if index else name, text)
    for file in files.values():
        file.close()
    return counts


def write_pages(source: Path, out: Path) -> int:
    """OUT/docs.jsonl: the HTML forms of held-out pages as people read them, taken out of the HTML by trafilatura."""
    from trafilatura import extract

    out.mkdir(parents=True, exist_ok=True)
    count = 0
    with (out / "docs.jsonl").open("w") as file:
        for name, text, plain in documents(source):
            if not plain and _held_out(name) and len(readable := extract(text, favor_precision=True) or "") > 500:
                file.write(json.dumps({"text": readable[:40_000], "id": name}) + "\n")
                count += 1
    return count


def _held_out(name: str) -> bool:
    """One page in 16, by its name: every form of it."""
    return int(hashlib.sha256(name.split("/")[-1].encode()).hexdigest(), 16) % 16 == 0


def write_tokenizer(folder: Path, corpus: Path, vocab: int) -> None:
    """A byte-level BPE of the corpus with Phi-3's control tokens and template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    native = Tokenizer(models.BPE())
    native.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    native.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=list(CONTROL), initial_alphabet=alphabet, show_progress=False
    )
    texts = (json.loads(line)["text"] for kind in ("strict", "broad") for line in (corpus / kind / "docs.jsonl").open())
    native.train_from_iterator((text[:20_000] for text in texts), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    native.save(str(folder / "tokenizer.json"))
    config = {"bos_token": CONTROL[0], "eos_token": CONTROL[0], "chat_template": KNOWN_TEMPLATES["phi-3"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 1, 3]}))


def write_shards(source: Path, tokenizer: Path, out: Path) -> None:
    """Every document of SOURCE/docs.jsonl as token shards, unfiltered, in an order of its own."""
    from phi3mobile.files import sha256
    from phi3mobile.text.vocabularies import load_tokenizer
    from phi3mobile.training.data.shards import ShardWriter, Vocabulary, write_index

    words = load_tokenizer(tokenizer)
    writer = ShardWriter(out, Vocabulary(words.vocab_size, 0, sha256(tokenizer / "tokenizer.json")))
    lines = (source / "docs.jsonl").read_text().splitlines()
    for number, line in enumerate(lines):
        if number >= writer.documents:
            text = json.loads(line)["text"]
            key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
            writer.add(words.encode(text, special=False), key)
    writer.close()
    write_index(out)


def packages() -> list[dict[str, str]]:
    """name, section and one-line description of every package that this machine's apt knows, in a shuffled order."""
    text = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    found = {}
    for block in text.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Section|Description|Description-en): (.*)$", block, re.MULTILINE))
        about = fields.get("Description", fields.get("Description-en"))
        if about and "Package" in fields and 3 <= len(about.split()) <= 14:
            found[fields["Package"]] = {"name": fields["Package"], "section": fields.get("Section", ""), "about": about}
    entries = [found[name] for name in sorted(found)]
    random.Random(0).shuffle(entries)
    return entries


def write_chats(out: Path, count: int) -> None:
    """chats.jsonl, pairs.jsonl and their held-out halves: what a package is for, and which of two answers is right."""
    out.mkdir(parents=True, exist_ok=True)
    entries = packages()
    for name, part in (("", entries[200 : 200 + count]), ("held-out-", entries[:200])):
        chats, pairs = [], []
        for entry, other in zip(part, [*part[1:], part[0]], strict=True):
            question = [{"role": "user", "content": f"What is the package {entry['name']} for?"}]
            chats.append({"messages": [*question, {"role": "assistant", "content": f"It is for: {entry['about']}."}]})
            pairs.append(
                {"messages": question, "chosen": f"It is for: {entry['about']}.", "rejected": f"It is for: {other['about']}."}
            )
        # DPO computes every pair's reference first: 2,500 of them are a minute here.
        for kind, lines in (("chats", chats), ("pairs", pairs[:2500])):
            (out / f"{name}{kind}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_sections(out: Path, count: int) -> None:
    """sections.jsonl and held-out-sections.jsonl: a description, and which section of Debian it belongs to, in one word."""
    out.mkdir(parents=True, exist_ok=True)
    groups = {name: [e for e in packages() if e["section"] == name] for name in SECTIONS}
    chosen = [group[i] for i in range(max(map(len, groups.values()))) for group in groups.values() if i < len(group)]
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"Package: {e['about']}\nSection (one of {', '.join(SECTIONS)})?"},
                {"role": "assistant", "content": e["section"]},
            ]
        }
        for e in chosen
    ]
    for name, part in (("held-out-", lines[:96]), ("", lines[96 : 96 + count])):
        (out / f"{name}sections.jsonl").write_text("".join(json.dumps(line) + "\n" for line in part))
