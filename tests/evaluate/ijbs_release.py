"""A small release in the layout of IJB-S: lists, and what images of it are called."""

from pathlib import Path

import numpy as np


def write_lists(folder: Path, people: int = 30, seed: int = 0) -> list[str]:
    """Write the lists; returns images, ``subject/videos_video_frame.jpg`` and ``subject/img_number.jpg``, in order.

    Videos show several people, a gallery's still has no image, one of the metadata is in no list.
    """
    rng = np.random.default_rng(seed)
    subjects = [7 * k + 3 for k in range(people)]
    half = subjects[: people // 2], subjects[people // 2 :]
    seen = {f"videos/{4000 + k}.mp4": sorted(rng.choice(subjects, 5, replace=False).tolist()) for k in range(28)}
    enrolled = {f"videos/{5000 + k}.mp4": sorted(subjects[3 * k : 3 * k + 3]) for k in range(people // 3)}
    stills = {f"img/{100 + k}.jpg": subject for k, subject in enumerate(4 * subjects)}
    uav = {"img/900.jpg": subjects[2], "img/901.png": subjects[-1]}
    videos = list(seen)
    meta = [(subject, file) for file, who in (seen | enrolled).items() for subject in who]
    meta += [(subject, file) for file, subject in (stills | uav).items()]
    rows = [f"{subject},{file},{frame},9,9,30,30" for subject, file in meta for frame in (1, 2)]

    def write(name: str, heading: str, lines: list[str]) -> None:
        path = folder / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([heading, *lines]) + "\n")

    write("cs6_metadata", "SUBJECT_ID,FILE,FRAME,X,Y,W,H", rows)
    write("cs6_surveillance_to_single-booking_probe", "FILE", videos[:20])
    write("cs6_surveillance_to_surveillance_probe", "FILE", videos[:16])
    write("cs6_uav_to_single-booking_probe", "FILE", [*videos[20:27], *uav])
    for k, members in enumerate(half, 1):
        shown = [(subject, file) for file, subject in stills.items() if subject in members]
        kinds = {
            "single": shown[: len(members)],
            "booking": shown,
            "surveillance": [
                (subject, file) for file, who in enrolled.items() for subject in who if subject in members
            ],
        }
        for kind, listed in kinds.items():
            lines = [f"{row},{subject},{file},x" for row, (subject, file) in enumerate(listed)]
            write(f"galleries/cs6_surveillance_to_{kind}_g{k}", "TEMPLATE_ID,SUBJECT_ID,FILE,MORE", lines)
    images = []
    for subject, file in meta:
        stem = file.rpartition(".")[0].replace("/", "_")
        if stem.startswith("videos"):
            images += [f"{subject}/{stem}_{frame}.jpg" for frame in range(rng.integers(1, 5))]
        elif stem != "img_104":
            images.append(f"{subject}/{stem}.jpg")
    return images


def make_features(images: list[str], d: int = 12, seed: int = 1) -> np.ndarray:
    """Features float64 (n, d) of lengths that differ, alike where they show one subject."""
    rng = np.random.default_rng(seed)
    subject = np.array([int(name.partition("/")[0]) for name in images])
    centres = rng.standard_normal((subject.max() + 1, d))
    return (centres[subject] + 1.6 * rng.standard_normal((len(images), d))) * rng.uniform(0.5, 2, (len(images), 1))
