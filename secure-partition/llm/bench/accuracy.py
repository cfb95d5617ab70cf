#!/usr/bin/env python3
"""Holds the integer engine to a float32 evaluation of the same weights, and to llama.cpp.

Two texts, in windows of 512 tokens whose second halves are scored: perplexity, KL divergence of the next token's distribution
and agreement on its likeliest one; of the model as it is, and of its weights in Q8_0 and F16. Then what each of the engine's
roundings costs, perplexity by position in windows of 2,048 tokens, and greedy answers to ten prompts.
Prints tables, and writes --json. Exits with 1 if a target is missed.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
# A licence, and a program: what it is told and what it says differ as much as texts do.
TEXTS = ["/usr/share/common-licenses/GPL-3", "/usr/lib/python3.11/statistics.py"]
PARTS = ("files", "ablation", "positions", "answers")
TYPES = ("Q8_0", "F16")


def enter_environment(folder):
    """Runs this script again inside a virtual environment with what it needs, made if it is not there."""
    python = folder / "bin" / "python"
    if Path(sys.prefix).resolve() == folder.resolve():
        return
    stamp = folder / "requirements.txt"
    requirements = HERE / "requirements.txt"
    # For any machine: a virtual one may announce instructions that it does not let programs use.
    options = {"CMAKE_ARGS": "-DGGML_NATIVE=OFF"}
    wanted = f"{requirements.read_text()}{options}\n"
    if not stamp.exists() or stamp.read_text() != wanted:
        needs = {"python3-venv": importlib.util.find_spec("ensurepip"), "g++": shutil.which("c++")}
        missing = " ".join(package for package, found in needs.items() if not found)
        if missing:
            sys.exit(f"the peers cannot be installed; first: apt-get install --no-install-recommends {missing}")
        print(f"Installing {', '.join(requirements.read_text().split())} into {folder} (minutes, once)", flush=True)
        venv.create(folder, with_pip=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--force-reinstall", "-r", requirements]
        subprocess.run(pip, check=True, env=os.environ | options)
        stamp.write_text(wanted)
    os.execv(python, [python, *sys.argv])


class Rows:
    """The figures, and the targets that they miss."""

    def __init__(self):
        self.rows, self.missed = [], []

    def add(self, name, unit, ours, peer=None, *, most=None, least=None):
        """A row; `most` and `least` bound `ours`."""
        ratio = ours / peer if peer else None
        self.rows.append({"name": name, "unit": unit, "ours": ours, "peer": peer, "ratio": ratio})
        if most is not None and ours > most:
            self.missed.append(f"{name}: {ours:.6g} is more than {most:.6g}")
        if least is not None and ours < least:
            self.missed.append(f"{name}: {ours:.6g} is less than {least:.6g}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("--evaluate", type=Path, required=True, help="the example `evaluate` of flexserve-model-loader")
    parser.add_argument("--venv", type=Path, required=True, help="where the peers are installed")
    parser.add_argument("--text", type=Path, nargs="+", default=[Path(text) for text in TEXTS])
    parser.add_argument("--windows", type=int, default=8, help="of each text; half as many of the converted files")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="only these")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    enter_environment(options.venv)
    absent = " ".join(str(text) for text in options.text if not text.exists())
    if absent:
        sys.exit(f"there is no {absent}; Debian 12 has these texts in base-files and libpython3.11-stdlib")
    sys.stdout.reconfigure(line_buffering=True)
    import parts

    rows, model = Rows(), parts.File(options.model, options.evaluate)
    texts = {text.name: model.tokens(text) for text in options.text}
    if "files" in options.part:
        parts.files(model, texts, options.windows, rows)
    if "ablation" in options.part:
        parts.ablation(model, texts, rows)
    if "positions" in options.part:
        parts.positions(model, texts, rows)
    if "answers" in options.part:
        parts.answers(model, rows)
    if "files" in options.part:
        model.close()
        with tempfile.TemporaryDirectory(dir=options.venv.parent) as folder:
            for kind in TYPES:
                parts.converted(model, Path(folder) / f"{kind}.gguf", kind, texts, (options.windows + 1) // 2, rows)
    if options.json:
        document = {"commands": [" ".join(map(str, sys.argv))], "rows": rows.rows, "missed": rows.missed}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if rows.missed:
        sys.exit("\n".join(["targets missed:", *rows.missed]))


if __name__ == "__main__":
    main()
