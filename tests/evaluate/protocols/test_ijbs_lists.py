import numpy as np
import pytest

from evaluate.protocols.ijbs_lists import PROBES, medium_of, read_lists
from tests.evaluate.ijbs_release import write_lists


def test_what_templates_are_made_of(tmp_path):
    images = write_lists(tmp_path)
    lists = read_lists(tmp_path)
    assert lists.pairings.keys() == PROBES.keys()
    names = {number: medium for medium, number in lists.media.items()}

    def read(templates):
        members = [[] for _ in templates.subject]
        for template, medium in zip(templates.template, templates.medium):
            members[template].append(names[medium])
        return dict(zip(map(tuple, (sorted(one) for one in members)), templates.subject.tolist()))

    for pairing in lists.pairings.values():
        for templates in (pairing.probes, *pairing.galleries):
            assert all({person for person, _ in media} == {who} for media, who in read(templates).items())
    shown = {(int(name.split("/")[0]), name.split("/")[1].rsplit("_", 1)[0]) for name in images if "/videos" in name}
    booking, multiview, uav = (
        lists.pairings[name]
        for name in ("surveillance_to_booking", "multiview_surveillance_to_booking", "uav_to_single")
    )
    assert all(len(media) == 4 for gallery in booking.galleries for media in read(gallery))
    assert [len(gallery.subject) for gallery in uav.galleries] == [15, 15]
    for media, who in read(multiview.probes).items():  # all videos of the metadata, enrolment's and UAVs' too
        assert set(media) == {medium for medium in shown if medium[0] == who}
    stills = {media for media in read(uav.probes) if media[0][1].startswith("img")}
    assert stills == {((17, "img_900"),), ((206, "img_901"),)}


def test_whose_image_it_is():
    assert medium_of("1", "videos_4012_21750.jpg") == (1, "videos_4012")
    assert medium_of("12", "img_101146.png") == (12, "img_101146")
    assert medium_of("thumbnails", "img_1.jpg") is None


def change(name, old, new):
    def apply(folder):
        path = folder / name
        path.write_text(path.read_text().replace(old, new))

    return apply


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda folder: (folder / "cs6_metadata.csv").unlink(), "there is no list .*cs6_metadata.csv"),
        (change("cs6_metadata.csv", "3,img/100.jpg,1,9", "anna,img/100.jpg,1,9"), "whole number, not 'anna'"),
        (
            change("cs6_surveillance_to_surveillance_probe.csv", "4003.mp4", "4303.mp4"),
            "line 5: .* in 'videos/4303.mp4'",
        ),
        (change("galleries/cs6_surveillance_to_booking_g2.csv", ",img/", ";img/"), "line 2 has 3 columns|not '"),
        (lambda folder: (folder / "cs6_uav_to_single-booking_probe.csv").write_text("FILE\n\n"), "lists nothing"),
    ],
)
def test_lists_that_are_none_of_the_release(tmp_path, spoil, message):
    write_lists(tmp_path)
    spoil(tmp_path)
    with pytest.raises((ValueError, OSError), match=message):
        read_lists(tmp_path)


def test_media_pool_to_the_mean_of_all_images(tmp_path):
    images = write_lists(tmp_path)
    lists = read_lists(tmp_path)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((len(images), 4))
    of = [lists.media.get(medium_of(*name.split("/"))) for name in images]
    sums = np.array([features[[k == m for m in of]].sum(axis=0) for k in range(len(lists.media))])
    templates = lists.pairings["multiview_surveillance_to_booking"].probes
    for row, vector in enumerate(templates.pool(sums)):
        members = templates.medium[templates.template == row]
        mean = features[[m in members for m in of]].mean(axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-12)
    gallery = lists.pairings["surveillance_to_single"].galleries[0].pool(sums)
    assert (~gallery.any(axis=1)).sum() == 1  # the still without an image
