"""Models that nobody here wrote, small and random from their configurations, and ways to train them. Each entry makes a `Program`."""

from __future__ import annotations

import contextlib
import copy
from typing import Any, Callable

import torch
from torch import nn
from torch.nn import functional as F

# torchvision's own operators are built for CUDA's torch and do not load beside a CPU one. Its models, and transformers', need only their names.
_names = torch.library.Library("torchvision", "FRAGMENT")
if not hasattr(torch.ops.torchvision, "nms"):
    _names.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _names.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

REGISTRY: dict[str, tuple[str, Callable[[], Program]]] = {}


class Program:
    """A model in training mode and what a step does with it.

    Args:
        loss: makes the step's batch from the generator as it is, and the loss of it.
        blocks: modules to call under `checkpoint`; empty where the model has a switch of its own (`transformers`).
    """

    def __init__(self, model: nn.Module, loss: Callable[[], torch.Tensor], blocks: list[nn.Module] | None = None) -> None:
        self.model, self.loss, self.blocks = model.train(), loss, blocks or []
        self.optimizer: Callable[[Any], torch.optim.Optimizer] = lambda parameters: torch.optim.AdamW(parameters, lr=1e-3)
        self.micro_batches = 1
        self.scaler: torch.amp.GradScaler | None = None
        self.autocast: torch.dtype | None = None
        self.ema: nn.Module | None = None

    def checkpoint_blocks(self, wrap: Callable[..., Any]) -> None:
        """Has each block called as `wrap(forward, ...)`."""
        if not self.blocks:
            self.model.gradient_checkpointing_enable()  # type: ignore[operator]  # which calls torch.utils.checkpoint
        for block in self.blocks:
            forward = block.forward
            block.forward = lambda *args, _forward=forward, **kwargs: wrap(_forward, *args, **kwargs)  # type: ignore[method-assign]

    def backward(self) -> torch.Tensor:
        """Gradients of one step; returns the loss."""
        total = torch.zeros(())
        for _ in range(self.micro_batches):
            with torch.autocast("cpu", self.autocast) if self.autocast else contextlib.nullcontext():
                loss = self.loss() / self.micro_batches
            total += loss.detach()
            (self.scaler.scale(loss) if self.scaler else loss).backward()
        return total

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        if self.scaler:
            self.scaler.step(optimizer)
            self.scaler.update()
        else:
            optimizer.step()
        if self.ema is not None:
            with torch.no_grad():
                for mean, parameter in zip(self.ema.parameters(), self.model.parameters()):
                    mean.lerp_(parameter, 0.1)


def program(family: str) -> Callable[[Callable[[], Program]], Callable[[], Program]]:
    def add(make: Callable[[], Program]) -> Callable[[], Program]:
        REGISTRY[make.__name__] = (family, make)
        return make

    return add


# ---- transformers


def _language_model(model: nn.Module, vocabulary: int = 97, batch: int = 4, length: int = 32) -> Program:
    def loss() -> torch.Tensor:
        tokens = torch.randint(1, vocabulary, (batch, length))
        return model(input_ids=tokens, labels=tokens).loss

    return Program(model, loss)


@program("transformers")
def gpt2() -> Program:
    from transformers import GPT2Config, GPT2LMHeadModel

    return _language_model(GPT2LMHeadModel(GPT2Config(vocab_size=97, n_positions=64, n_embd=64, n_layer=3, n_head=4)))


@program("transformers")
def llama() -> Program:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, attention_dropout=0.1
    )
    return _language_model(LlamaForCausalLM(config))


@program("transformers")
def mixtral() -> Program:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=97, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
        num_experts_per_tok=2, output_router_logits=True, attention_dropout=0.1,
    )  # fmt: skip
    return _language_model(MixtralForCausalLM(config))


@program("transformers")
def t5() -> Program:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=97, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=0)
    return _language_model(T5ForConditionalGeneration(config))


@program("transformers")
def bert() -> Program:
    from transformers import BertConfig, BertForMaskedLM

    model = BertForMaskedLM(BertConfig(vocab_size=97, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128))

    def loss() -> torch.Tensor:
        tokens = torch.randint(1, 97, (4, 32))
        mask = torch.ones(4, 32, dtype=torch.long)
        mask[:, 28:] = 0
        return model(input_ids=tokens, attention_mask=mask, labels=tokens).loss

    return Program(model, loss)


@program("transformers")
def vit() -> Program:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, image_size=32, patch_size=8, num_labels=10, hidden_dropout_prob=0.1
    )
    model = ViTForImageClassification(config)
    return Program(model, lambda: model(pixel_values=torch.randn(16, 3, 32, 32), labels=torch.randint(0, 10, (16,))).loss)


@program("transformers")
def whisper() -> Program:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=97, num_mel_bins=16, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=128, decoder_ffn_dim=128, max_source_positions=40, max_target_positions=32, dropout=0.1, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    return Program(model, lambda: model(input_features=torch.randn(8, 16, 80), labels=torch.randint(3, 97, (8, 16))).loss)


@program("transformers")
def mamba() -> Program:
    from transformers import MambaConfig, MambaForCausalLM

    return _language_model(MambaForCausalLM(MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=8)), length=16)


@program("transformers")
def gpt2_lora() -> Program:
    """PEFT: a frozen base, gradients for the adapters alone."""
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    base = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_positions=64, n_embd=64, n_layer=3, n_head=4))
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["c_attn"], fan_in_fan_out=True))
    base.enable_input_require_grads()
    return _language_model(model)


# ---- torchvision and timm


def _classifier(model: nn.Module, blocks: list[nn.Module], size: int = 32, batch: int = 4) -> Program:
    return Program(model, lambda: F.cross_entropy(model(torch.randn(batch, 3, size, size)), torch.randint(0, 10, (batch,))), blocks)


@program("vision")
def resnet50() -> Program:
    import torchvision

    model = torchvision.models.resnet50(num_classes=10)
    return _classifier(model, [block for layer in (model.layer1, model.layer2, model.layer3, model.layer4) for block in layer], size=48)


@program("vision")
def swin() -> Program:
    import torchvision

    model = torchvision.models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=10, stochastic_depth_prob=0.2)
    return _classifier(model, [block for stage in (model.features[1], model.features[3]) for block in stage])


@program("vision")
def deeplab() -> Program:
    """Of the U-Net kind: an encoder, a head that reads several of its levels, and an upsampling."""
    import torchvision

    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)
    return Program(
        model, lambda: F.cross_entropy(model(torch.randn(2, 3, 64, 64))["out"], torch.randint(0, 5, (2, 64, 64))), list(model.backbone.children())
    )


@program("vision")
def convnext() -> Program:
    import timm

    model = timm.create_model("convnext_atto", num_classes=10, drop_path_rate=0.1, dims=(16, 24, 32, 40), depths=(1, 1, 2, 1))
    return _classifier(model, [block for stage in model.stages for block in stage.blocks], size=64)


@program("vision")
def efficientnet() -> Program:
    import timm

    model = timm.create_model("efficientnet_lite0", num_classes=10, drop_rate=0.1, drop_path_rate=0.1)
    return _classifier(model, list(model.blocks), size=48)


# ---- plain torch


def _encoder() -> tuple[nn.Module, list[nn.Module]]:
    layer = nn.TransformerEncoderLayer(32, 4, 64, 0.1, batch_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    return model, list(model.layers)


@program("torch")
def encoder() -> Program:
    model, blocks = _encoder()
    mask = torch.zeros(4, 24, dtype=torch.bool)
    mask[:, 20:] = True
    return Program(model, lambda: model(torch.randn(4, 24, 32), src_key_padding_mask=mask).pow(2).mean(), blocks)


class _Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(50, 32), nn.LSTM(32, 48, 2, dropout=0.1, bidirectional=True, batch_first=True)
        self.head = nn.Linear(96, 50)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.embed(tokens), lengths, batch_first=True, enforce_sorted=False)
        return self.head(nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0])


@program("torch")
def packed_lstm() -> Program:
    model = _Packed()

    def loss() -> torch.Tensor:
        lengths = torch.randint(10, 40, (24,))
        return model(torch.randint(0, 50, (24, int(lengths.max()))), lengths).pow(2).mean()

    return Program(model, loss, [model])


class _Attention(nn.Module):
    """Graph attention over an edge list: gathers, a softmax by scatter, and sums into nodes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project, self.score, self.norm = nn.Linear(width, width), nn.Linear(2 * width, 1), nn.LayerNorm(width)

    def forward(self, nodes: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        source, target = edges
        h = self.project(nodes)
        score = F.leaky_relu(self.score(torch.cat([h[source], h[target]], 1))).squeeze(1).exp()
        total = torch.zeros(nodes.size(0)).index_add(0, target, score)
        message = F.dropout(score / (total[target] + 1e-6), 0.1).unsqueeze(1) * h[source]
        return self.norm(nodes + torch.zeros_like(h).index_add_(0, target, message))


@program("torch")
def gnn() -> Program:
    layers = nn.ModuleList(_Attention(32) for _ in range(4))

    def loss() -> torch.Tensor:
        nodes, edges = torch.randn(60, 32), torch.randint(0, 60, (2, 240))
        for layer in layers:
            nodes = layer(nodes, edges)
        return nodes.pow(2).mean()

    return Program(layers, loss, list(layers))


# ---- ways to train


@program("training")
def accumulation() -> Program:
    made = encoder()
    made.micro_batches = 3
    return made


@program("training")
def grad_scaler() -> Program:
    made = encoder()
    made.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    made.autocast = torch.float16
    return made


@program("training")
def autocast_bf16() -> Program:
    made = encoder()
    made.autocast = torch.bfloat16
    return made


@program("training")
def foreach_adamw() -> Program:
    made = encoder()
    made.optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, foreach=True)
    return made


@program("training")
def fused_adamw() -> Program:
    made = encoder()
    made.optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    return made


@program("training")
def sgd_momentum() -> Program:
    made = encoder()
    made.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, nesterov=True)
    return made


@program("training")
def ema() -> Program:
    made = encoder()
    made.ema = copy.deepcopy(made.model)
    return made


@program("training")
def clipped() -> Program:
    made = encoder()
    inner = made.update

    def update(optimizer: torch.optim.Optimizer) -> None:
        torch.nn.utils.clip_grad_norm_(made.model.parameters(), 0.1)
        inner(optimizer)

    made.update = update  # type: ignore[method-assign]
    return made


@program("training")
def hooks() -> Program:
    """On modules, tensors and parameters."""
    made = encoder()
    for block in made.blocks:
        block.register_forward_pre_hook(lambda module, args: (args[0] * 1.01, *args[1:]))
        block.register_forward_hook(lambda module, args, result: result.clamp(-3, 3))
        block.register_full_backward_hook(lambda module, inputs, outputs: None)

    def shrink(parameter: torch.Tensor) -> None:
        parameter.grad.mul_(0.99)  # type: ignore[union-attr]

    for parameter in made.model.parameters():
        parameter.register_post_accumulate_grad_hook(shrink)
        parameter.register_hook(lambda gradient: gradient.clamp(-1, 1))
    return made


def _stack(block: Callable[[], nn.Module], rows: int, width: int) -> Program:
    model = nn.Sequential(*(block() for _ in range(12)))
    return Program(model, lambda: model(torch.randn(rows, width)).pow(2).mean(), list(model))


class _Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, options: dict[str, float]) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.options = options
        return x * torch.sigmoid(options["beta"] * x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(ctx.options["beta"] * x)
        return gradient * (gate + ctx.options["beta"] * x * gate * (1 - gate)), None


class _SwishBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(48, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(_Swish.apply(self.linear(x), {"beta": 1.5}), 0.1) + x


@program("training")
def autograd_function() -> Program:
    return _stack(_SwishBlock, 64, 48)


class _Vmapped(nn.Module):
    """Per-sample gradients inside of the block, by `torch.func`."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(24, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        slopes = torch.func.vmap(torch.func.grad(lambda row: self.linear(row).tanh().sum()))(x.detach())
        return torch.tanh(self.linear(x)) + 0.1 * slopes


@program("training")
def func_inside() -> Program:
    return _stack(_Vmapped, 32, 24)


@program("training")
def sparse_embedding() -> Program:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(200, 32, sparse=True)
            self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(8))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.embed(tokens)
            for layer in self.layers:
                x = torch.tanh(layer(x))
            return x.mean(1)

    model = Bag()
    made = Program(model, lambda: model(torch.randint(0, 200, (16, 12))).pow(2).mean(), list(model.layers))
    made.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.1)
    return made
