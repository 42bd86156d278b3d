"""ONNX files of every origin: what their graphs normalise themselves, their types, layouts, batches and outputs."""

import numpy as np
import pytest
import torch

from evaluate.features.network import load_network
from pipelines.common.alignment import relative_template

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIZE, DIMENSION = 4, 5
PIXELS = np.random.default_rng(1).integers(0, 256, (5, 3, SIZE, SIZE)).astype(np.float64)
IMAGES = torch.from_numpy(PIXELS / 127.5 - 1).float()
WEIGHTS = np.random.default_rng(0).standard_normal((3 * SIZE * SIZE, DIMENSION)).astype(np.float32)
HEAD = "f = Flatten(y) e = MatMul(f, w)"
MEAN, STD = np.array([0.485, 0.456, 0.406])[:, None, None], np.array([0.229, 0.224, 0.225])[:, None, None]


def write(path, body, images="float[n,3,4,4]", outputs="float[n,d] e", opset=17):
    """A network of ``body`` in ONNX's text form, from the image x; the weights w lie in the file."""
    text = f'<ir_version: 8, opset_import: ["": {opset}]> network ({images} x) => ({outputs}) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(WEIGHTS, "w"))
    onnx.save(model, path)
    return path


def embeddings(images):
    """What the networks here make of images that are normalised already."""
    return images.reshape(len(images), -1) @ WEIGHTS


def close(network, expected, tolerance=1e-4, images=IMAGES):
    found = network.model(images).double().numpy()
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected)


def three(values, kind="float", shape="[1,3,1,1]"):
    return f"Constant<value = {kind}{shape} {{{', '.join(f'{value:.6g}' for value in np.ravel(values))}}}>()"


def scalar(value, kind="float"):
    text = repr(value) if kind == "float" else str(np.float16(value).view(np.uint16))
    return f"Constant<value = {kind} {{{text}}}>()"


def signed(p):
    return p / 127.5 - 1


def imagenet(p):
    return (p / 255 - MEAN) / STD


# From the image x to y, the range of the images, and what y is of pixels of 0...255.
FORMS = {
    "nothing": ("y = Identity(x)", (-1, 1), signed),
    "Constant, Sub, Constant, Mul": (
        f"m = {scalar(127.5)} s = Sub(x, m) k = {scalar(1 / 127.5)} y = Mul(s, k)",
        (0, 255),
        signed,
    ),
    "Sub, Div by 128": (
        f"m = {scalar(127.5)} k = {scalar(128.0)} s = Sub(x, m) y = Div(s, k)",
        (0, 255),
        lambda p: (p - 127.5) / 128,
    ),
    "Cast, Sub, Mul": (
        f"m = {scalar(127.5)} k = {scalar(1 / 127.5)} c = Cast<to = 1>(x) s = Sub(c, m) y = Mul(s, k)",
        (0, 255),
        signed,
    ),
    "Mul by 1/255": (f"k = {scalar(1 / 255)} y = Mul(x, k)", (0, 255), lambda p: p / 255),
    "a division by the image": (f"k = {scalar(1.0)} y = Div(k, x)", (-1, 1), None),
    "Div by 127.5, minus 1": (
        "k = Constant<value_float = 127.5>() o = Constant<value_floats = [1.0]>() s = Div(x, k) y = Sub(s, o)",
        (0, 255),
        signed,
    ),
    "Mul, Add of -1": (f"k = {scalar(1 / 127.5)} o = {scalar(-1.0)} s = Mul(k, x) y = Add(o, s)", (0, 255), signed),
    "Div by 255, ImageNet's mean and std": (
        f"k = {scalar(255.0)} m = {three(MEAN)} v = {three(STD)} a = Div(x, k) b = Sub(a, m) y = Div(b, v)",
        (0, 255),
        imagenet,
    ),
    "ImageNet's mean and std of 0...255": (
        f"m = {three(255 * MEAN)} v = {three(255 * STD, shape='[3,1,1]')} b = Sub(x, m) y = Div(b, v)",
        (0, 255),
        imagenet,
    ),
    "ImageNet's mean and std of 0...1": (
        f"m = {three(MEAN)} v = {three(STD)} b = Sub(x, m) y = Div(b, v)",
        (0, 1),
        imagenet,
    ),
    "0.5 and 2": (f"m = {scalar(0.5)} k = {scalar(2.0)} s = Sub(x, m) y = Mul(s, k)", (0, 1), signed),
    "Mul by 2, minus 1": (f"m = {scalar(1.0)} k = {scalar(2.0)} s = Mul(x, k) y = Sub(s, m)", (0, 1), signed),
    "0.5 and 0.5": (f"m = {scalar(0.5)} s = Sub(x, m) y = Div(s, m)", (0, 1), signed),
    "back to 0...255, then a mean": (
        f"k = {scalar(255.0)} m = {three([104, 117, 123])} s = Mul(x, k) y = Sub(s, m)",
        (0, 1),
        lambda p: p - np.array([104, 117, 123])[:, None, None],
    ),
    "a mean alone": (f"m = {scalar(127.5)} y = Sub(x, m)", (0, 255), lambda p: p - 127.5),
    "to 0...1 by itself": (
        f"k = {scalar(0.5)} s = Mul(x, k) y = Add(s, k)",
        (-1, 1),
        lambda p: p / 255,
    ),
    "inverted": (f"w0 = {scalar(255.0)} s = Sub(w0, x) y = Div(s, w0)", (0, 255), lambda p: 1 - p / 255),
    "constants of half precision, handed on": (
        f"h = {scalar(127.5, 'float16')} i = Identity(h) m = Cast<to = 1>(i) s = Sub(x, m) y = Div(s, m)",
        (0, 255),
        signed,
    ),
    "constants that are computed": (
        f"one = {scalar(1.0)} m = {scalar(127.5)} k = Div(one, m) s = Sub(x, m) y = Mul(s, k)",
        (0, 255),
        signed,
    ),
    "a channel at a time": (
        f"m = {scalar(127.5)} r, g, b = Split<axis = 1>(x) r1 = Sub(r, m) g1 = Sub(g, m) b1 = Sub(b, m)"
        " a = Concat<axis = 1>(b1, g1, r1) y = Div(a, m)",
        (0, 255),
        lambda p: signed(p)[:, ::-1],
    ),
    "limited first": (
        f"l = {scalar(0.0)} h = {scalar(1.0)} m = {scalar(0.5)} c = Clip(x, l, h) s = Sub(c, m) y = Div(s, m)",
        (0, 1),
        signed,
    ),
    "limited afterwards": (
        f"l = {scalar(-0.9)} h = {scalar(0.9)} m = {scalar(127.5)} s = Sub(x, m) n = Div(s, m) y = Clip(n, l, h)",
        (0, 255),
        lambda p: signed(p).clip(-0.9, 0.9),
    ),
    "quantised": (
        f"q = {scalar(1 / 255)} z = Constant<value = uint8 {{0}}>() m = {scalar(0.5)} a = QuantizeLinear(x, q, z)"
        " c = DequantizeLinear(a, q, z) s = Sub(c, m) y = Div(s, m)",
        (0, 1),
        signed,
    ),
    "batch norm of pixels": (
        f"a = {three([1, 1.2, 0.8], shape='[3]')} b = {three([0.3, -0.2, 0.1], shape='[3]')}"
        f" m = {three([130, 110, 100], shape='[3]')} v = {three([4900, 4800, 5000], shape='[3]')}"
        " y = BatchNormalization<epsilon = 0.0>(x, a, b, m, v)",
        (0, 255),
        lambda p: (
            (p - np.array([130, 110, 100])[:, None, None])
            / np.sqrt([4900, 4800, 5000])[:, None, None]
            * np.array([1, 1.2, 0.8])[:, None, None]
            + np.array([0.3, -0.2, 0.1])[:, None, None]
        ),
    ),
    "no slope": (f"k = {scalar(0.0)} o = {scalar(1.0)} s = Mul(x, k) y = Add(s, o)", (-1, 1), np.ones_like),
    "the images' own mean": ("m = ReduceMean<axes = [1, 2, 3]>(x) y = Sub(x, m)", (-1, 1), None),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_range_is_told_from_the_arithmetic(tmp_path, form):
    body, (low, high), normalised = FORMS[form]
    network = load_network(write(tmp_path / "net.onnx", f"{body} {HEAD}"))
    assert network.input.startswith(f"RGB in [{low}, {high}], as the graph")
    if normalised:
        close(network, embeddings(normalised(PIXELS)))


def test_batch_norms_of_a_network_without_normalisation(tmp_path):
    """Statistics of images in [-1, 1], and a scale and bias that it learned."""
    body = (
        f"a = {three([1, 1, 1], shape='[3]')} b = {three([-1.2, -1.2, -1.2], shape='[3]')}"
        f" m = {three([-0.1, -0.2, 0], shape='[3]')} v = {three([0.3, 0.3, 0.2], shape='[3]')}"
        f" y = BatchNormalization(x, a, b, m, v) {HEAD}"
    )
    assert load_network(write(tmp_path / "net.onnx", body)).input.startswith("RGB in [-1, 1]")


@pytest.mark.parametrize(
    ("given", "text", "normalised"),
    [
        ({"input_range": (0.0, 1.0)}, "RGB in [0, 1], set by --input-range", lambda p: p / 255),
        ({"bgr": True}, "BGR in [-1, 1], as the graph normalises nothing, set by --bgr", lambda p: signed(p)[:, ::-1]),
        (
            {"input_range": (0.0, 255.0), "mean": (104.0, 117.0, 123.0), "std": (58.0,), "bgr": True},
            "BGR in [0, 255] minus mean 104, 117, 123 over std 58, set by --input-range, --mean, --std, --bgr",
            lambda p: (p[:, ::-1] - np.array([104, 117, 123])[:, None, None]) / 58,
        ),
    ],
)
def test_what_is_given_overrules(tmp_path, given, text, normalised):
    network = load_network(write(tmp_path / "net.onnx", f"y = Identity(x) {HEAD}"), None, "cpu", given)
    assert network.input == text
    close(network, embeddings(normalised(PIXELS)))


@pytest.mark.parametrize(
    ("images", "body", "input_range", "normalised", "tolerance"),
    [
        ("float16[n,3,4,4]", "y = Cast<to = 1>(x)", "[-1, 1]", signed, 1e-3),
        ("double[n,3,4,4]", "y = Cast<to = 1>(x)", "[-1, 1]", signed, 1e-5),
        ("uint8[n,3,4,4]", "y = Cast<to = 1>(x)", "[0, 255]", lambda p: p, 1e-6),
        (
            "float16[n,3,4,4]",
            f"m = {scalar(127.5, 'float16')} s = Sub(x, m) d = Div(s, m) y = Cast<to = 1>(d)",
            "[0, 255]",
            signed,
            1e-2,
        ),
        ("float[n,4,4,3]", "y = Transpose<perm = [0, 3, 1, 2]>(x)", "[-1, 1]", signed, 1e-5),
        (
            "float[n,4,4,3]",
            f"m = {three([127.5] * 3, shape='[3]')} s = Sub(x, m) d = Div(s, m) y = Transpose<perm = [0, 3, 1, 2]>(d)",
            "[0, 255]",
            signed,
            1e-5,
        ),
        ("uint8[n,4,4,3]", "t = Transpose<perm = [0, 3, 1, 2]>(x) y = Cast<to = 1>(t)", "[0, 255]", lambda p: p, 1e-6),
    ],
)
def test_types_and_layouts(tmp_path, images, body, input_range, normalised, tolerance):
    network = load_network(write(tmp_path / "net.onnx", f"{body} {HEAD}", images))
    assert input_range in network.input and network.input_size == SIZE
    close(network, embeddings(normalised(PIXELS)), tolerance)


@pytest.mark.parametrize(("batch", "declared"), [(1, True), (2, True), (32, True), (1, False)])
def test_batches_that_the_file_fixes(tmp_path, batch, declared):
    """Five images through batches of one, two and 32, in the input's shape, or in the graph alone for one."""
    body = f"s = Constant<value = int64[2] {{{batch}, 48}}>() f = Reshape(x, s) e = MatMul(f, w)"
    network = load_network(write(tmp_path / "net.ONNX", body, f"float[{batch if declared else 'n'},3,4,4]"))
    for count in (5, 1, 4):
        close(network, embeddings(signed(PIXELS))[:count], images=IMAGES[:count])


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("s = Constant<value = int64[4] {0, 5, 1, 1}>() e4 = Reshape(e, s)", "float[n,d,1,1] e4"),
        ("s = Constant<value = int64[3] {0, 1, 5}>() e3 = Reshape(e, s)", "float[n,1,d] e3"),
        ("norm = ReduceL2<axes = [1]>(e)", "float[n,1] norm, float[n,d] e"),
        ("map = AveragePool<kernel_shape = [2, 2]>(y)", "float[n,3,h,w] map, float[n,d] e"),
        ("h = Cast<to = 10>(e)", "float16[n,d] h"),
    ],
)
def test_the_one_output_that_can_be_embeddings(tmp_path, body, outputs):
    network = load_network(write(tmp_path / "net.onnx", f"y = Identity(x) {HEAD} {body}", outputs=outputs))
    assert network.model(IMAGES).dtype == torch.float32
    close(network, embeddings(signed(PIXELS)), 1e-3)


@pytest.mark.parametrize(
    ("body", "outputs", "message"),
    [
        ("s = Constant<value = int64[2] {-1, 1}>() r = Reshape(x, s)", "float[m,1] r", r"r \(48, 1\).* detector"),
        ("s = Constant<value = int64[2] {-1, 4}>() r = Reshape(x, s)", "float[m,4] r", r"r \(12, 4\).* detector"),
        ("r = ReduceMean<axes = [1, 2, 3], keepdims = 1>(x)", "float[n,1,1,1] r", r"r \(1, 1, 1, 1\)"),
        ("r = ReduceMean<axes = [2, 3], keepdims = 0>(x)", "float[n,3] r", r"r \(1, 3\)"),
        ("r = AveragePool<kernel_shape = [2, 2]>(x)", "float[n,3,h,w] r", r"r \(1, 3, 3, 3\)"),
        ("f = Flatten(x) e = MatMul(f, w) r = Neg(e)", "float[n,d] e, float[n,d] r", r"e \(1, 5\), r \(1, 5\).* 2 of"),
    ],
)
def test_networks_for_other_work_are_refused(tmp_path, body, outputs, message):
    network = load_network(write(tmp_path / "net.onnx", body, outputs=outputs))
    with pytest.raises(ValueError, match=f"net.onnx gives {message}"):
        network.model(IMAGES)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("float[n,1,4,4]", "1 channels"),
        ("int8[n,3,4,4]", "int8"),
        ("float[3,4,4]", "batch, 3, height, width"),
        ("float[n,3,112,96]", "112 x 96; only square"),
        ("float[n,112,96,3]", "112 x 96; only square"),
        ("float[n,3,4,4] y, float[n]", r"2 inputs \(y: .*x: "),
    ],
)
def test_inputs_that_cannot_be_given_are_refused(tmp_path, images, message):
    with pytest.raises(ValueError, match=f"net.onnx .*{message}"):
        load_network(write(tmp_path / "net.onnx", "e = Identity(x)", images, f"{images.split()[-1]} e"))


def test_nothing_is_printed_of_old_files(tmp_path, capfd):
    """PyTorch once listed the weights among the inputs, of which onnxruntime warns a line each."""
    path = write(tmp_path / "net.onnx", f"m = {scalar(127.5)} s = Sub(x, m) y = Div(s, m) {HEAD}")
    model = onnx.load(path)
    model.ir_version = 4
    model.graph.input.insert(0, onnx.helper.make_tensor_value_info("w", 1, WEIGHTS.shape))
    onnx.save(model, path)
    network = load_network(path)
    assert "[0, 255]" in network.input
    close(network, embeddings(signed(PIXELS)))
    assert capfd.readouterr() == ("", "")


def test_constants_outside_the_file(tmp_path):
    path = write(tmp_path / "net.onnx", f"s = Sub(x, m) y = Div(s, m) {HEAD}")
    model = onnx.load(path)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.full((1, 3, 1, 1), 127.5, np.float32), "m"))
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    network = load_network(path)
    assert "[0, 255]" in network.input
    close(network, embeddings(signed(PIXELS)))


@pytest.mark.parametrize("batch", ["n", "2"])
def test_a_second_input_takes_landmarks(tmp_path, batch):
    """A network whose embeddings are the landmarks; those of the template where it is given none."""
    text = f'<ir_version: 8, opset_import: ["": 17]> network (float[{batch},3,4,4] data, float[{batch},5,2] landmarks)'
    text += f" => (float[{batch},10] e) {{ y = ReduceMean<axes = [1, 2, 3], keepdims = 1>(data) z = Mul(y, y)"
    text += " s = Squeeze(z, a) u = Sub(s, s) v = Unsqueeze(u, b) w = Add(v, landmarks) e = Flatten(w) }"
    model = onnx.parser.parse_model(text)
    for name, axes in (("a", [1, 2, 3]), ("b", [1, 2])):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(axes), name))
    onnx.save(model, tmp_path / "model.onnx")
    network = load_network(tmp_path / "model.onnx").model
    assert network.wants_landmarks
    landmarks = torch.rand(5, 5, 2)
    torch.testing.assert_close(network(IMAGES, landmarks), landmarks.flatten(1))
    template = torch.from_numpy(relative_template()).flatten()
    torch.testing.assert_close(network(IMAGES), template.expand(5, -1))
