#!/usr/bin/env python3
"""Makes demo/: the two sample datasets of `dsfs demo`, from real public data that packages ship.

    pip download --no-deps scikit-image==0.26.0 scikit-learn==1.9.1
    pip install pillow==13.0.0
    python3 scripts/make-demo-data.py scikit_image-*.whl scikit_learn-*.whl demo

Running it again gives the same pictures and tables, byte for byte with the same version of Pillow.
"""

import csv
import hashlib
import io
import json
import pathlib
import sys
import zipfile

from PIL import Image

FRAMES = 16
FRAME_SIZE = (96, 72)
RATE_HZ = 10
# The camera's way over the photograph: from the helmet to the face to the flag.
WAYPOINTS = [(300, 300), (180, 60), (20, 40)]


def position(step: float) -> tuple[int, int]:
    """Where the frame's upper left corner is, at `step` between 0 and 1."""
    leg = min(int(step * (len(WAYPOINTS) - 1)), len(WAYPOINTS) - 2)
    part = step * (len(WAYPOINTS) - 1) - leg
    (x0, y0), (x1, y1) = WAYPOINTS[leg], WAYPOINTS[leg + 1]
    return round(x0 + (x1 - x0) * part), round(y0 + (y1 - y0) * part)


def write(path: pathlib.Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def as_json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def astronaut_pan(wheel: zipfile.ZipFile, target: pathlib.Path) -> None:
    photo = Image.open(io.BytesIO(wheel.read("skimage/data/astronaut.png"))).convert("RGB")
    lines = []
    for n in range(FRAMES):
        x, y = position(n / (FRAMES - 1))
        frame = photo.crop((x, y, x + FRAME_SIZE[0], y + FRAME_SIZE[1]))
        png = io.BytesIO()
        frame.save(png, "PNG", optimize=True)
        name = f"frames/{n:06}.png"
        write(target / name, png.getvalue())
        gray = frame.convert("L").tobytes()
        lines.append({
            "t": round(n / RATE_HZ, 3),
            "frame": name,
            "x": x,
            "y": y,
            "mean_intensity": round(sum(gray) / len(gray), 3),
            "sha256": hashlib.sha256(png.getvalue()).hexdigest(),
        })
    write(target / "data.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    write(target / "meta.json", as_json({
        "name": "astronaut_pan",
        "description": "A camera's pan over a still photograph: crops of NASA's portrait of Eileen Collins, "
                       "with times as if recorded at 10 Hz.",
        "columns": {"t": "seconds", "frame": "path", "x": "pixels", "y": "pixels",
                    "mean_intensity": "0 to 255", "sha256": "of the frame's file"},
        "frames": FRAMES,
        "rate_hz": RATE_HZ,
        "source": "skimage/data/astronaut.png of scikit-image 0.26.0; NASA Great Images database, "
                  "https://flic.kr/p/r9qvLn",
        "license": "public domain (no known copyright restrictions)",
    }))


def iris(wheel: zipfile.ZipFile, target: pathlib.Path) -> None:
    table = list(csv.reader(io.StringIO(wheel.read("sklearn/datasets/data/iris.csv").decode())))
    species = table[0][2:]
    rows = [row[:4] + [species[int(row[4])]] for row in table[1:]]
    # Every fifth flower of each species is for validation.
    parts = {"train": [r for n, r in enumerate(rows) if n % 5], "val": [r for n, r in enumerate(rows) if n % 5 == 0]}
    columns = ["sepal_length_cm", "sepal_width_cm", "petal_length_cm", "petal_width_cm", "species"]
    for part, chosen in parts.items():
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([columns] + chosen)
        write(target / "data" / part / "iris.csv", text.getvalue().encode())
    write(target / "meta.json", as_json({
        "name": "iris",
        "description": "Fisher's measurements of 150 iris flowers, in a training and a validation part.",
        "columns": columns,
        "rows": {part: len(chosen) for part, chosen in parts.items()},
        "source": "sklearn/datasets/data/iris.csv of scikit-learn 1.9.1; R. A. Fisher, 'The use of multiple "
                  "measurements in taxonomic problems', 1936, from E. Anderson's measurements",
        "license": "public domain (facts published in 1936); the package's file is BSD-3-Clause",
    }))


def main() -> None:
    image_wheel, learn_wheel, target = sys.argv[1:]
    target = pathlib.Path(target)
    astronaut_pan(zipfile.ZipFile(image_wheel), target / "astronaut_pan")
    iris(zipfile.ZipFile(learn_wheel), target / "iris")


main()
