"""Both implementations of each primitive agree to float32 rounding, forward and gradient, and with float64 numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mindcv_crossvit.models import golden as rules
from mindcv_crossvit.models.crossformer_groups import groups_of
from mindcv_crossvit.models.interpolation import cubic_matrix
from mindcv_crossvit.models.resize import Resize

pytestmark = pytest.mark.usefixtures("graph_mode")

PRIMITIVES = {
    "linear": (lambda op: op.linear(), [(10, 6), (8, 6), (8,)]),
    "linear without bias": (lambda op: op.linear(), [(10, 6), (8, 6)]),
    "norm_linear": (lambda op: op.norm_linear(1e-5), [(10, 6), (6,), (6,), (8, 6), (8,)]),
    "norm_linear without bias": (lambda op: op.norm_linear(1e-5), [(10, 6), (6,), (6,), (8, 6)]),
    "norm_mlp": (lambda op: op.norm_mlp(1e-5), [(10, 6), (6,), (6,), (8, 6), (8,), (6, 8), (6,)]),
    "norm_mlp in training": (
        lambda op: op.norm_mlp(1e-5).set_train(),
        [(600, 6), (6,), (6,), (8, 6), (8,), (6, 8), (6,)],
    ),
    "norm_mlp, tanh": (
        lambda op: op.norm_mlp(1e-5, approximate="tanh"),
        [(10, 6), (6,), (6,), (8, 6), (8,), (6, 8), (6,)],
    ),
    "gelu": (lambda op: op.gelu(), [(10, 6)]),
    "gelu of many rows": (lambda op: op.gelu(), [(600, 3)]),
    "gelu of maps": (lambda op: op.gelu(), [(5, 2, 2, 3)]),
    "gelu, tanh": (lambda op: op.gelu("tanh"), [(10, 6)]),
    "layer_norm": (lambda op: op.layer_norm(1e-6), [(10, 6), (6,), (6,)]),
    "layer_norm of many rows": (lambda op: op.layer_norm(1e-6, many=True), [(600, 6), (6,), (6,)]),
    "attention": (lambda op: op.attention(5, 2), [(10, 24)]),
    "class_attention": (lambda op: op.class_attention(5, 2), [(2, 8), (10, 8), (10, 8)]),
    "class_attention over one key": (lambda op: op.class_attention(1, 2), [(2, 8), (2, 8), (2, 8)]),
    "norm_class_attention": (
        lambda op: op.norm_class_attention(5, 2, 1e-5),
        [(2, 8), (10, 8), (8,), (8,), *[(8, 8), (8,)] * 3],
    ),
    "norm_class_attention over one key": (
        lambda op: op.norm_class_attention(1, 2, 1e-5),
        [(2, 8), (2, 8), (8,), (8,), *[(8, 8), (8,)] * 3],
    ),
    "biased_attention": (lambda op: op.biased_attention(2), [(3, 4, 6), (3, 5, 6), (3, 5, 6), (2, 4, 5)]),
    "biased_attention, masked": (
        lambda op: op.biased_attention(2),
        [(4, 3, 6), (4, 5, 6), (4, 5, 6), (2, 3, 5), (2, 1, 5)],
    ),
    "group_attention over long distances": (lambda op: in_groups(op, 4, 6, 2, 2, 0), [(48, 24), (2, 4, 4)]),
    "group_attention, padded on both sides": (lambda op: in_groups(op, 5, 3, 2, 2, 1), [(30, 24), (2, 4, 4)]),
}
CONVOLUTIONS = [
    # kernel, stride, pad, size, from_image
    (4, 4, 0, 12, True),
    (7, 4, 3, 24, True),
    (7, 4, 3, 21, True),
    (3, 3, 0, 12, False),
    (3, 1, 1, 5, False),
    (3, 2, 1, 8, False),
    (3, 2, 1, 7, False),
    (16, 4, 6, 16, True),
    (8, 2, 3, 8, False),
    # CrossFormer's embedding and merging
    (8, 4, 2, 16, True),
    (32, 4, 14, 32, True),
    (2, 2, 0, 8, False),
    (4, 2, 1, 8, False),
    # CabViT's merging
    (1, 1, 0, 5, False),
]


def in_groups(op, *grid):
    """group_attention of two heads on a grid."""
    from mindspore import nn

    class InGroups(nn.Cell):
        def __init__(self):
            super().__init__()
            self.op, self.groups = op.group_attention(2), tuple(groups_of(*grid))

        def construct(self, qkv, bias):
            return self.op(qkv, bias, self.groups)

    return InGroups()


def values_and_gradients(build, name, shapes):
    """[output, gradient of each input] of a primitive for the output gradient by rule."""
    from mindspore import Tensor, nn, ops

    from mindcv_crossvit.ops import choose

    class Run(nn.Cell):
        def __init__(self):
            super().__init__()
            self.op = build(choose(name))

        def construct(self, *inputs):
            return self.op(*inputs)

    class Gradient(nn.Cell):
        def __init__(self, run):
            super().__init__()
            self.gradient = ops.GradOperation(get_all=True, sens_param=True)
            self.run_cell = run

        def construct(self, sens, *inputs):
            return self.gradient(self.run_cell)(*inputs, sens)

    inputs = [Tensor((2 * rules.u(f"input {i}", s)).astype(np.float32)) for i, s in enumerate(shapes)]
    run = Run()
    output = run(*inputs)
    sens = Tensor(rules.u("sens", output.shape).astype(np.float32))
    return [v.asnumpy() for v in (output, *Gradient(run)(sens, *inputs))]


@pytest.mark.parametrize("name", ["composed", "native"])
@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_each_implementation_equals_standard(primitive, name):
    build, shapes = PRIMITIVES[primitive]
    reference = values_and_gradients(build, "standard", shapes)
    for ours, theirs in zip(values_and_gradients(build, name, shapes), reference, strict=True):
        # in float64, standard's class attention is off by 2.2e-5 in the norm's weight, composed's by 7e-6
        atol = 4e-5 if primitive.startswith("norm_class_attention") else 5e-6
        # a sum over tokens that nearly cancels is rounded as its neighbours are, which do not
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=max(atol, 1e-6 * np.abs(theirs).max()))


@pytest.mark.parametrize(
    "primitive, most, pieces", [("norm_mlp", 24, 4), ("attention", 50, 2), ("attention", 1, 2), ("gelu of maps", 24, 3)]
)
def test_large_tensors_are_worked_on_in_pieces(primitive, most, pieces, monkeypatch):
    """10 rows of 8 hidden numbers, 2 pictures of 50 scores, 5 maps of 12 numbers."""
    from mindspore import Tensor

    from mindcv_crossvit.ops.composed import pieces as module  # pieces is their number

    build, shapes = PRIMITIVES[primitive]
    whole = values_and_gradients(build, "composed", shapes)
    for limit in ("HIDDEN", "SCORES"):
        monkeypatch.setattr(module, limit, most)
    units, numbers = {"norm_mlp": (10, 8), "attention": (2, 50), "gelu of maps": (5, 12)}[primitive]
    parts = module.split_rows(Tensor(np.zeros((10, 3), np.float32)), units, numbers, most)
    assert len(parts) == pieces and sum(part.shape[0] for part in parts) == 10
    assert all(part.shape[0] % (10 // units) == 0 for part in parts)
    for ours, theirs in zip(values_and_gradients(build, "composed", shapes), whole, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)


def test_both_scale_pictures():
    both = [
        values_and_gradients(lambda op: op.scale_pictures(), name, [(10, 6), (5,)])[:2]
        for name in ("composed", "standard", "native")
    ]
    factors, sens = (2 * rules.u("input 1", (5,))).astype(np.float32), rules.u("sens", (10, 6)).astype(np.float32)
    for output, gradient in both:
        np.testing.assert_allclose(gradient, sens * np.repeat(factors, 2)[:, None], rtol=1e-6)
        x = (2 * rules.u("input 0", (10, 6))).astype(np.float32)
        np.testing.assert_allclose(output, x * np.repeat(factors, 2)[:, None], rtol=1e-6)


@pytest.mark.parametrize(
    "kernel, stride, pad, size, from_image, bias",
    [*((*case, True) for case in CONVOLUTIONS), (7, 4, 3, 24, True, False), (3, 2, 1, 8, False, False)],
)
def test_convolutions_agree(kernel, stride, pad, size, from_image, bias):
    """The two keep maps in different layouts; through `to_tokens` they must be the same."""
    from mindspore import nn

    class Conv(nn.Cell):
        def __init__(self, op, standard):
            super().__init__()
            self.conv, self.tokens = op.conv2d(kernel, stride, pad, from_image), op.to_tokens()
            self.channels_last = not (standard or from_image)

        def construct(self, x, weight, bias=None):
            if self.channels_last:
                x = x.transpose(0, 2, 3, 1)
            return self.tokens(self.conv(x, weight, bias))

    shapes = [(2, 3, size, size), (5, 3, kernel, kernel), (5,)][: 3 if bias else 2]
    found = {
        n: values_and_gradients(lambda op: Conv(op, op.name == "standard"), n, shapes)
        for n in ("standard", "composed", "native")
    }
    reference = found.pop("standard")
    for name, ours in found.items():
        # the native patch embedding takes no gradient to the image: there is none in a model
        parts = zip(ours, reference, strict=True) if name == "composed" else zip(ours[::2], reference[::2], strict=True)
        for mine, theirs in parts:
            # a sum of 3,072 products is rounded in proportion to the largest of its kind
            atol = 2e-5 if kernel < 32 else 5e-6 * np.abs(theirs).max()
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=atol)


@pytest.mark.parametrize(
    "kernel, stride, pad, bias", [(3, 1, 1, True), (7, 1, 3, True), (7, 4, 3, False), (3, 2, 1, False)]
)
def test_depthwise_convolutions_agree(kernel, stride, pad, bias):
    """Through `to_map` and `to_tokens`, as a model uses them."""
    from mindspore import nn

    class Conv(nn.Cell):
        def __init__(self, op):
            super().__init__()
            self.conv, self.tokens, self.map = op.depthwise(kernel, stride, pad), op.to_tokens(), op.to_map()

        def construct(self, x, weight, bias=None):
            return self.tokens(self.conv(self.map(x, 6, 8), weight, bias))

    shapes = [(96, 4), (4, 1, kernel, kernel), (4,)][: 3 if bias else 2]
    both = [values_and_gradients(Conv, name, shapes) for name in ("composed", "standard")]
    for ours, theirs in zip(*both, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["composed", "standard"])
def test_gelu_is_the_exact_one_or_the_tanh_form(name):
    from mindspore import Tensor

    from mindcv_crossvit.ops import choose

    x = np.linspace(-12, 12, 20001).astype(np.float32)
    exact = np.array([v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x.astype(np.float64)])
    np.testing.assert_allclose(choose(name).gelu()(Tensor(x)).asnumpy(), exact, rtol=0, atol=1.5e-6)
    form = np.array([v / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x.astype(float)])
    np.testing.assert_allclose(choose(name).gelu("tanh")(Tensor(x)).asnumpy(), form, rtol=0, atol=1.5e-6)


@pytest.mark.parametrize("name", ["composed", "standard"])
def test_layer_norm_uses_the_eps_it_is_given(name):
    from mindspore import Tensor

    from mindcv_crossvit.ops import choose

    x = (1e-3 * rules.u("x", (4, 8))).astype(np.float32)
    one, zero = Tensor(np.ones(8, np.float32)), Tensor(np.zeros(8, np.float32))
    for eps in (1e-6, 1e-5):
        y = choose(name).layer_norm(eps)(Tensor(x), one, zero).asnumpy()
        x64 = x.astype(np.float64)
        expected = (x64 - x64.mean(1, keepdims=True)) / np.sqrt(x64.var(1, keepdims=True) + eps)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-6)


def test_bicubic_resize_is_pytorchs():
    from mindspore import Tensor

    row = np.array([0, 1, 4, 9, 16, 25], np.float32)
    resized = Resize("bicubic", 6, 5)(Tensor(np.tile(row, (1, 1, 6, 1)))).asnumpy()
    expected = [0.0617506, 1.7110025, 6.1250014, 13.2909994, 24.3092594]
    np.testing.assert_allclose(resized[0, 0, 0], expected, atol=1.5e-5)  # PyTorch rounds, ours are the exact values
    np.testing.assert_allclose(cubic_matrix(240, 224).sum(0), 1, atol=1e-6)


def test_unknown_ops_are_refused():
    from mindcv_crossvit.ops import choose

    with pytest.raises(ValueError, match="known are auto, standard, fused, composed"):
        choose("quick")
    assert choose("auto", "CPU").name == "composed"
    assert choose("auto", "Ascend").name == "fused"


def stand_in(query, key, value, head_num, scalar_value=1.0, input_layout="BSH"):
    """What MindSpore documents of flash_attention_score for [B, S, H1] tensors, in float32."""
    from mindspore import ops

    batch, length, width = query.shape
    heads = [
        t.astype("float32").reshape(batch, t.shape[1], head_num, -1).transpose(0, 2, 1, 3) for t in (query, key, value)
    ]
    share = ops.softmax(ops.matmul(heads[0], heads[1].transpose(0, 1, 3, 2)) * scalar_value, -1)
    return ops.matmul(share, heads[2]).transpose(0, 2, 1, 3).reshape(batch, length, width).astype(query.dtype)


@pytest.fixture
def card(monkeypatch):
    """The operators of a card with stand-ins; what fused attention was asked for is collected."""
    import mindspore as ms
    from mindspore import ops

    from mindcv_crossvit.ops import fused

    asked = []

    def score(*inputs, **options):
        asked.append(options)
        return stand_in(*inputs, **options)

    monkeypatch.setattr(fused, "score", score)
    monkeypatch.setattr(fused, "exact_gelu", lambda x, approximate: ops.gelu(x, approximate=approximate))
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield asked
    ms.set_context(mode=ms.GRAPH_MODE)


def test_the_fused_attention_of_a_card_is_asked_for_what_plain_attention_gives(card):
    import mindspore as ms
    from mindspore import Tensor

    from mindcv_crossvit.ops import choose, fused

    attend = choose("auto", "Ascend", "O2").attention(5, 2)
    assert isinstance(attend, fused.FusedAttention)
    qkv = Tensor(rules.u("qkv", (10, 96)).astype(np.float16))
    np.testing.assert_allclose(attend(qkv).asnumpy(), attend.plain(qkv).asnumpy(), rtol=0, atol=1e-3)
    assert card == [{"scalar_value": 0.25, "input_layout": "BSH"}]
    attend(Tensor(rules.u("qkv", (10, 24)).astype(np.float16)))  # heads of 4
    attend(qkv.astype(ms.float32))
    assert len(card) == 1


SHAPES = [(2, 32), (10, 32), (10, 32)]


def test_the_fused_class_attention_of_a_card_is_asked_for_the_same(card):
    import mindspore as ms
    from mindspore import Tensor

    from mindcv_crossvit.ops import choose

    attend = choose("fused", precision="O3").class_attention(5, 2)
    inputs = [Tensor(rules.u(name, shape).astype(np.float16)) for name, shape in zip("qkv", SHAPES, strict=True)]
    np.testing.assert_allclose(attend(*inputs).asnumpy(), attend.plain(*inputs).asnumpy(), rtol=0, atol=1e-3)
    assert card == [{"scalar_value": 0.25, "input_layout": "BSH"}]
    attend(*(t.astype(ms.float32) for t in inputs))
    assert len(card) == 1


def test_the_other_fused_operators_of_a_card_are_the_standard_ones_in_one_piece(card):
    from mindspore import Tensor

    from mindcv_crossvit.ops import choose

    x = Tensor(rules.u("x", (5, 6)).astype(np.float32))
    weights = [Tensor(rules.u(f"w{k}", s).astype(np.float32)) for k, s in enumerate(PRIMITIVES["norm_mlp"][1][1:])]
    for form in ("none", "tanh"):
        one, several = choose("fused").with_gelu(form), choose("standard").with_gelu(form)
        np.testing.assert_array_equal(one.gelu()(x).asnumpy(), several.gelu()(x).asnumpy())
        mine, theirs = (op.norm_mlp(1e-5)(x, *weights).asnumpy() for op in (one, several))
        np.testing.assert_array_equal(mine, theirs)


def test_only_a_card_gets_fused_operators():
    from mindcv_crossvit.ops import choose, standard

    for device in ("Ascend", "CPU"):
        assert choose("standard", device, "O2").attention is standard.Attention
    assert choose("auto", "CPU", "O2").name == "composed"


@pytest.mark.parametrize("odd, finite", [(1e15, True), (np.nan, False), (np.inf, False), (-np.inf, False)])
def test_gradients_that_overflowed_are_seen_as_mindspore_sees_them(odd, finite):
    """Also beside an infinity of the other sign."""
    from mindspore import Tensor, amp, nn

    from mindcv_crossvit.ops.overflow import all_finite

    class Checked(nn.Cell):
        def __init__(self, check):
            super().__init__()
            self.check = check

        def construct(self, *tensors):
            return self.check(tensors)

    values = np.ones((3, 5), np.float32)
    values[1, 2] = odd
    tensors = Tensor(values), Tensor(-values), Tensor(np.ones(4, np.float32))
    for check in (all_finite("CPU"), all_finite("Ascend")):
        assert bool(Checked(check)(*tensors)) == finite
    assert not Checked(all_finite("CPU"))(*(t * 1e30 for t in tensors))  # no second moment can hold its square
    assert all_finite("Ascend") is amp.all_finite and all_finite() is all_finite("CPU")
