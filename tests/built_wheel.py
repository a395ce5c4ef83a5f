"""A check of a built wheel: its files, its metadata, and the program that it installs.

    python -m tests.built_wheel WHEEL FOLDER

FOLDER becomes a virtual environment with the wheel. Other packages come from this environment.
"""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

from packaging.metadata import Metadata

from tests import foreign_model

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "src" / "worldpm"
PACKAGED, ASKED = "worldpm/tiny-forum", "How do I bake rye in the oven?"
TURNS = [{"role": "user", "content": "How long?"}, {"role": "assistant", "content": "An hour."}]


def main(wheel: Path, folder: Path) -> None:
    """Check the wheel. An AssertionError names the fault."""
    metadata = check_contents(wheel)
    program = install(wheel, folder)
    version = answer(program, folder, "--version").strip()
    assert version == f"worldpm {metadata.version}", version

    model = foreign_model.make(folder / "model")
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps({"messages": TURNS}) + "\n")
    reward = json.loads(answer(program, folder, "score", model, rows))["reward"]
    expected = foreign_model.plain_reward(model, TURNS)
    assert abs(reward - expected) < 1e-4, (reward, expected)
    rows.write_text(
        json.dumps({"prompt": ASKED, "responses": ["Bake rye slowly.", "Prune roses."]})
    )
    good, off_topic = json.loads(answer(program, folder, "score", PACKAGED, rows))["rewards"]
    assert good > off_topic, (good, off_topic)
    print(f"{wheel.name}: its files and metadata are right, and its program scores")


def check_contents(wheel: Path) -> Metadata:
    """Check that a wheel has all files of the package and the licence. Return its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (path,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Metadata.from_email(archive.read(path), validate=True)

    files = {
        str(file.relative_to(PACKAGE.parent))
        for file in PACKAGE.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    of_package = {name for name in names if ".dist-info/" not in name}
    assert of_package == files, sorted(of_package ^ files)
    assert "worldpm/py.typed" in files
    assert any(name.endswith((".html", ".js", ".css")) for name in files)
    assert path.replace("METADATA", "licenses/LICENSE") in names
    assert metadata.license_expression == "Apache-2.0"
    assert metadata.description == (REPOSITORY / "README.md").read_text(encoding="utf-8")
    return metadata


def install(wheel: Path, folder: Path) -> Path:
    """Install a wheel in a new environment, which uses the packages of this one. Return the
    program."""
    venv.create(folder, clear=True, with_pip=False)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    python = str(scripts / "python")
    if find_spec("pip"):
        command = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index"]
    else:
        command = ["uv", "pip", "install", "--python", python, "--offline"]
    subprocess.run([*command, "--quiet", "--no-deps", str(wheel)], check=True)

    # after the installation, so that the installer sees no other worldpm
    (packages,) = folder.glob("**/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    code = "import worldpm; print(worldpm.__file__)"
    imported = answer(Path(python), folder, "-c", code).strip()
    assert Path(imported).is_relative_to(packages.resolve()), imported
    return scripts / "worldpm"


def answer(program: Path, folder: Path, *words: object) -> str:
    """Output of a program of the environment, run without the PYTHONPATH of this one."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(program), *map(str, words)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
