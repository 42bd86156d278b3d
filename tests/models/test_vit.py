"""The transformers: masked patches, registers, and what their publications say of regularisation."""

import pytest
import torch
from torch.nn import functional as F

from models import create_model
from models.vit import VisionTransformer
from pipelines.common.errors import UserError
from tests.models.support import close


def test_drop_path_grows_with_depth():
    rates = [block.drop_path.p for block in VisionTransformer(32, 12, input_size=27, drop_path=0.11).blocks]
    assert rates == pytest.approx([0.01 * i for i in range(12)])


def test_masked_patches_are_replaced_by_the_mask_token():
    torch.manual_seed(0)
    model = VisionTransformer(32, 4, input_size=45, mask_ratio=0.5, drop_path=0.0).train()
    images = torch.rand(3, 3, 45, 45)
    tokens = model.tokens(images)
    masked = (tokens == model.mask_token).all(2)
    assert masked.sum(1).tolist() == [13] * 3  # of 25, int(12.5) are kept
    assert not torch.equal(masked[0], masked[1])
    # What is kept is what the blocks make of these patches alone, in their places.
    embedded = model.patch_embed(images) + model.pos_embed
    for i in range(3):
        alone = embedded[i : i + 1, ~masked[i]]
        for block in model.blocks:
            alone = block(alone)
        torch.testing.assert_close(tokens[i, ~masked[i]], model.norm(alone)[0], rtol=1e-4, atol=1e-5)
    assert not (model.eval().tokens(images) == model.mask_token).all(2).any()


def with_registers(**options):
    torch.manual_seed(0)
    return VisionTransformer(32, 3, 16, 45, drop_path=0.0, **{"registers": 4} | options)


def test_registers_are_tokens_of_the_blocks_alone():
    """A masked-attention computation of the same: patches attend to registers, and the embedding sees only patches."""
    model = with_registers().eval()
    plain = VisionTransformer(32, 3, 16, 45)
    own = {name: tensor for name, tensor in model.state_dict().items() if name != "register_tokens"}
    plain.load_state_dict(own)  # every other tensor is the plain network's
    images = torch.rand(2, 3, 45, 45)
    x = F.conv2d(images, own["patch_embed.proj.weight"], own["patch_embed.proj.bias"], stride=9)
    x = torch.cat([x.flatten(2).transpose(1, 2) + own["pos_embed"], model.register_tokens.expand(2, -1, -1)], 1)
    for i in range(3):
        block = {name.removeprefix(f"blocks.{i}."): tensor for name, tensor in own.items() if f"blocks.{i}." in name}
        y = F.layer_norm(x, (32,), block["norm1.weight"], block["norm1.bias"])
        q, k, v = (y @ block["attn.qkv.weight"].T).view(2, 29, 3, 8, 4).permute(2, 0, 3, 1, 4)
        y = ((q @ k.mT / 2).softmax(3) @ v).transpose(1, 2).reshape(2, 29, 32)
        x = x + y @ block["attn.proj.weight"].T + block["attn.proj.bias"]
        y = F.layer_norm(x, (32,), block["norm2.weight"], block["norm2.bias"])
        y = F.relu6(y @ block["mlp.fc1.weight"].T + block["mlp.fc1.bias"])
        x = x + y @ block["mlp.fc2.weight"].T + block["mlp.fc2.bias"]
    with torch.no_grad():
        close(model.tokens(images), F.layer_norm(x[:, :25], (32,), own["norm.weight"], own["norm.bias"]), 1e-5)
        assert not torch.allclose(model(images), plain.eval()(images), rtol=1e-3)
        assert model(images).shape == (2, 16)


@pytest.mark.parametrize("masked, counts", [(False, {12}), (True, {11, 12, 13, 14})])
def test_registers_stay_unless_they_are_masked(masked, counts):
    """Of 25 patches int(12.5) are kept, or of 29 tokens int(14.5), with 0 to 4 registers among them."""
    model = with_registers(mask_ratio=0.5, mask_registers=masked).train()
    seen = []
    model.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    tokens = model.tokens(torch.rand(16, 3, 45, 45))
    kept = (tokens != model.mask_token).any(2).sum(1)
    assert tokens.shape == (16, 25, 32) and counts >= set(kept.tolist())
    assert seen[0].shape[1] == (14 if masked else 16)
    registers = (seen[0].unsqueeze(2) == model.register_tokens).all(3).any(2).sum(1)
    assert torch.equal(kept + registers, torch.full((16,), seen[0].shape[1]))
    assert masked == (len(registers.unique()) > 1)


def test_published_names_and_count_of_vit_8r():
    """ViT-FR-Registers adds ``register_tokens`` (1, 8, 512) to arcface_torch's tensors, and nothing else."""
    with torch.device("meta"):
        plain, registers = create_model("vit_b"), create_model("vit_b", registers=8)
    found = {name: tensor.shape for name, tensor in registers.state_dict().items()}
    assert found.pop("register_tokens") == (1, 8, 512)
    assert found == {name: tensor.shape for name, tensor in plain.state_dict().items()}


def test_published_regularisation_of_the_vits():
    def rates(name):
        with torch.device("meta"):
            model = create_model(name)
        return model.blocks[-1].drop_path.p, model.mask_ratio

    assert {rates(name) for name in ("vit_t", "vit_s", "vit_b", "transface_t", "transface_s")} == {(0.1, 0.1)}
    assert rates("vit_t_dp005_mask0") == rates("vit_s_dp005_mask_0") == (0.05, 0)
    assert rates("vit_b_dp005_mask_005") == rates("vit_l") == rates("transface_l") == (0.05, 0.05)
    assert rates("vit_h") == (0.1, 0)


@pytest.mark.parametrize("name, size", [("vit_t", 8), ("transface_t", 8), ("vit_b_unmasked", 7), ("vit_b_kprpe", 7)])
def test_an_image_without_a_patch_is_told(name, size):
    with pytest.raises(UserError, match=f"images of {size} pixels hold no patch of"):
        create_model(name, 16, size)
