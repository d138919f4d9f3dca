"""The bodies of the networks: the paper's sizes, and that the fast forms compute the plain ones."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import small
from torch import nn

from cgmvae.model import GMVAE
from cgmvae.networks import (
    Decoder,
    Encoder,
    SubPixelTransposedConv,
    feature_map,
    interleave,
    phases_of,
)

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)
# Height and width after two rounds of a 5x5 convolution and 2x2 pooling, worked out by hand.
MAPS = [(MNIST, "same", 7), (CIFAR, "same", 8), (MNIST, "valid", 4), (CIFAR, "valid", 5)]


@pytest.mark.parametrize(("image", "padding", "side"), MAPS)
def test_encoder_and_decoder_have_the_sizes_of_appendix_a(image, padding, side):
    flat = 40 * side * side
    assert feature_map(image, padding) == (40, side, side)
    assert {k: tuple(v.shape) for k, v in Encoder(image, padding).named_parameters()} == {
        "conv1.weight": (20, image[0], 5, 5), "conv1.bias": (20,),
        "conv2.weight": (40, 20, 5, 5), "conv2.bias": (40,),
        "full.weight": (512, flat), "full.bias": (512,)}
    decoder = Decoder(image, z_dim=64, units=300, padding=padding)
    assert {k: tuple(v.shape) for k, v in decoder.named_parameters()} == {
        "full1.weight": (300, 64), "full1.bias": (300,),
        "full2.weight": (flat, 300), "full2.bias": (flat,),
        "conv1.weight": (40, 20, 5, 5), "conv1.bias": (20,),
        "conv2.weight": (20, image[0], 5, 5), "conv2.bias": (image[0],)}


@pytest.mark.parametrize(("image", "padding", "side"), MAPS)
def test_shapes_of_encodings_and_images(image, padding, side):
    x = torch.rand(2, *image)
    assert Encoder(image, padding)(x).shape == (2, 512)
    phases = Decoder(image, 64, padding=padding)(torch.randn(2, 64))
    assert interleave(phases).shape == x.shape


@pytest.mark.parametrize("dataset", ("mnist-sample", "cifar100-sample"))
def test_heads_have_the_sizes_of_appendix_a(dataset):
    model = GMVAE(small(dataset=dataset, K=7, z_dim=64))
    heads = {k: tuple(v.shape) for k, v in model.named_parameters()
             if not k.startswith(("encoder", "decoder"))}
    assert heads == {
        "q_y_layers.0.weight": (512, 512), "q_y_layers.0.bias": (512,),
        "q_y_layers.2.weight": (256, 512), "q_y_layers.2.bias": (256,),
        "q_y_layers.4.weight": (7, 256), "q_y_layers.4.bias": (7,),
        "q_z_from_h.weight": (512, 512), "q_z_from_h.bias": (512,),
        "q_z_from_y.weight": (512, 7),  # with q_z_from_h: (512, 512 + K)
        "q_z_layers.1.weight": (256, 512), "q_z_layers.1.bias": (256,),
        "q_z_layers.3.weight": (128, 256), "q_z_layers.3.bias": (128,),
        "p_z_layer.weight": (128, 7), "p_z_layer.bias": (128,)}
    assert model.decoder.full1 is None, "a single fully connected layer"
    assert model.decoder.full2.weight.shape == (40 * 7 * 7 if dataset == "mnist-sample" else 40 * 8 * 8, 64)
    assert model.encoder.conv1.weight.shape[1] == {"mnist-sample": 1, "cifar100-sample": 3}[dataset]


def plain_encoder(encoder: Encoder, x: torch.Tensor) -> torch.Tensor:
    """The encoder with ReLU before pooling, and its last layer on rows, then columns."""
    a = F.max_pool2d(F.relu(F.conv2d(x, encoder.conv1.weight, encoder.conv1.bias,
                                     padding=encoder.padding)), 2)
    a = F.max_pool2d(F.relu(F.conv2d(a, encoder.conv2.weight, encoder.conv2.bias,
                                     padding=encoder.padding)), 2)
    side = a.shape[-1]
    rows = encoder.full.weight.view(512, side, side, 40).permute(0, 3, 1, 2)
    return F.relu(torch.einsum("nchw,uchw->nu", a, rows) + encoder.full.bias)


@pytest.mark.parametrize(("image", "padding", "side"), MAPS)
def test_pooling_before_relu_is_pooling_after_it(image, padding, side):
    torch.manual_seed(0)
    encoder = Encoder(image, padding).double()
    x = torch.rand(3, *image, dtype=torch.float64)
    ours, plain = encoder(x), plain_encoder(encoder, x)
    assert torch.allclose(ours, plain, rtol=1e-10, atol=1e-12)
    weights = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad((ours * weights).sum(), list(encoder.parameters())),
                    torch.autograd.grad((plain * weights).sum(), list(encoder.parameters())),
                    strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("padding", (2, 0))
@pytest.mark.parametrize("channels", (1, 3))
def test_sub_pixel_convolution_is_a_transposed_convolution(padding, channels):
    torch.manual_seed(1)
    ours = SubPixelTransposedConv(6, channels, padding).double()
    plain = nn.ConvTranspose2d(6, channels, 5, stride=2, padding=padding, output_padding=1).double()
    plain.load_state_dict(ours.state_dict())
    a = torch.randn(2, 6, 5, 4, dtype=torch.float64, requires_grad=True)
    value, expected = interleave(ours(a)), plain(a)
    assert value.shape == expected.shape
    assert torch.allclose(value, expected, rtol=1e-10, atol=1e-12)
    weights = torch.randn_like(expected)
    ours_grads = torch.autograd.grad((value * weights).sum(), [a, ours.weight, ours.bias])
    plain_grads = torch.autograd.grad((expected * weights).sum(), [a, plain.weight, plain.bias])
    for got, wanted in zip(ours_grads, plain_grads, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-9, atol=1e-12)


def test_sub_pixel_convolution_starts_as_torch_would_start_it():
    torch.manual_seed(2)
    ours = SubPixelTransposedConv(40, 20, 2)
    torch.manual_seed(2)
    plain = nn.ConvTranspose2d(40, 20, 5, stride=2, padding=2, output_padding=1)
    assert torch.equal(ours.weight, plain.weight) and torch.equal(ours.bias, plain.bias)


def test_interleave_puts_each_phase_where_it_belongs():
    phases = torch.arange(2 * 12 * 3 * 5.0).view(2, 12, 3, 5)
    image = interleave(phases)
    assert image.shape == (2, 3, 6, 10)
    for row in range(2):
        for column in range(2):
            first = 3 * (2 * row + column)  # phase-major channels
            assert torch.equal(image[:, :, row::2, column::2], phases[:, first:first + 3])


@pytest.mark.parametrize("channels", (1, 3))
def test_phases_of_undoes_interleave(channels):
    image = torch.randn(2, channels, 6, 10)
    assert phases_of(image).shape == (2, 4 * channels, 3, 5)
    assert torch.equal(interleave(phases_of(image)), image)


@pytest.mark.parametrize("K", (3, 20))
def test_split_first_layer_of_q_z_is_one_layer_on_the_concatenation(K):
    torch.manual_seed(3)
    model = GMVAE(small(K=K)).double()
    h = torch.randn(4, 512, dtype=torch.float64)
    y = torch.softmax(torch.randn(4, K, dtype=torch.float64), -1)
    layer = nn.Linear(512 + K, 512).double()
    with torch.no_grad():
        layer.weight.copy_(torch.cat([model.q_z_from_h.weight, model.q_z_from_y.weight], 1))
        layer.bias.copy_(model.q_z_from_h.bias)
    mean, log_variance = model.q_z_layers(layer(torch.cat([h, y], 1))).chunk(2, 1)
    q_z = model.q_z(h, y)
    assert torch.allclose(q_z.loc, mean, rtol=1e-10, atol=1e-12)
    assert torch.allclose(q_z.scale.log() * 2, log_variance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("initialisation", "bound"), [
    ("torch", 1 / math.sqrt(512 + 300)),  # of nn.Linear(512 + K, 512)
    ("glorot", math.sqrt(6 / (512 + 300 + 512)))])
def test_split_first_layer_starts_as_one_layer_would(initialisation, bound):
    torch.manual_seed(4)
    model = GMVAE(small(K=300, initialisation=initialisation))
    for values in (model.q_z_from_h.weight, model.q_z_from_h.bias, model.q_z_from_y.weight):
        if initialisation == "glorot" and values is model.q_z_from_h.bias:
            assert not values.any()
            continue
        assert values.abs().max() <= bound
        assert values.abs().max() > 0.97 * bound
        assert float(values.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize(("name", "draw"), [
    ("glorot", torch.nn.init.xavier_uniform_), ("he", torch.nn.init.kaiming_normal_)])
def test_initialisations_are_torchs_own(name, draw):
    """Same spread as torch.nn.init in each layer that has one name for both; biases are zero."""
    torch.manual_seed(5)
    model = GMVAE(small(dataset="cifar100-sample", initialisation=name))
    for layer in (model.encoder.conv2, model.encoder.full, model.q_y_layers[2], model.decoder.full2):
        like = torch.empty(layer.weight.shape)
        draw(like, **({"nonlinearity": "relu"} if name == "he" else {}))
        assert float(layer.weight.detach().std()) == pytest.approx(float(like.std()), rel=0.05)
    assert all(not p.any() for n, p in model.named_parameters() if n.endswith("bias"))
    deconv = model.decoder.conv1.weight.detach()
    inputs = 40 * 25 / 4  # of one output pixel: a quarter of the taps, as the stride is 2
    variance = 2 / (60 * 25) if name == "glorot" else 2 / inputs
    assert float(deconv.var()) == pytest.approx(variance, rel=0.05)
