"""The five reference networks in PyTorch, as somebody who trains them in Python would write them.

Tensors have this project's names, so that weights of `trainer init` load strictly; GCViT is timm's. Attention is
`scaled_dot_product_attention`, or explicit products of matrices with `plain_attention`.
"""

import torch
import torch.nn.functional as F
from torch import nn


def attend(q, k, v, dropout, plain):
    if not plain:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return F.dropout(scores.softmax(-1), dropout, dropout > 0) @ v


class Attention(nn.Module):
    def __init__(self, dim, heads, head_dim, drop, plain):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, dim)
        self.heads, self.drop, self.plain = heads, drop, plain

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = attend(q, k, v, self.drop if self.training else 0.0, self.plain)
        return self.proj(y.transpose(1, 2).reshape(b, n, -1))


def conv_stages(*channels):
    sizes = zip(channels, channels[1:])
    return nn.ModuleList(nn.ModuleList([nn.Conv2d(i, o, 3, bias=False)]) for i, o in sizes)


class CctBlock(nn.Module):
    def __init__(self, dim, rate, plain):
        super().__init__()
        self.pre_norm = nn.LayerNorm(dim, eps=1e-5)
        self.self_attn = Attention(dim, 2, 128, 0.1, plain)
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.linear1, self.linear2 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.rate = rate

    def forward(self, x):
        factor = 1.0
        if self.training and self.rate > 0:
            keep = 1 - self.rate
            factor = (torch.rand(len(x), 1, 1, device=x.device) + keep).floor() / keep
        x = x + self.self_attn(self.pre_norm(x)) * factor
        y = F.dropout(F.gelu(self.linear1(self.norm1(x)), approximate="tanh"), 0.1, self.training)
        y = F.dropout(F.gelu(self.linear2(y), approximate="tanh"), 0.1, self.training)
        return x + y * factor


class Cct(nn.Module):
    def __init__(self, plain):
        super().__init__()
        dim = 128
        self.tokenizer = nn.Module()
        self.tokenizer.conv_layers = conv_stages(3, 64, dim)
        self.classifier = nn.Module()
        self.classifier.positional_emb = nn.Parameter(torch.zeros(1, 64, dim))
        self.classifier.blocks = nn.ModuleList(CctBlock(dim, rate, plain) for rate in (0.0, 0.1))
        self.classifier.norm = nn.LayerNorm(dim, eps=1e-5)
        self.classifier.attention_pool = nn.Linear(dim, 1)
        self.classifier.fc = nn.Linear(dim, 10)

    def forward(self, x):
        for stage in self.tokenizer.conv_layers:
            x = F.max_pool2d(F.pad(F.relu(stage[0](x)), (1, 1, 1, 1)), 3, 2, ceil_mode=True)
        c = self.classifier
        x = x.flatten(2).transpose(1, 2) + c.positional_emb
        for block in c.blocks:
            x = block(x)
        x = c.norm(x)
        return c.fc((c.attention_pool(x).softmax(1).transpose(1, 2) @ x).squeeze(1))


class VitBlock(nn.Module):
    def __init__(self, dim, plain):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, 4, dim // 4, 0.0, plain)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        y = F.dropout(F.gelu(self.mlp.fc1(self.norm2(x))), 0.1, self.training)
        return x + F.dropout(F.gelu(self.mlp.fc2(y)), 0.1, self.training)


class Vit(nn.Module):
    def __init__(self, plain):
        super().__init__()
        dim = 64
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, dim, 6, 6)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 145, dim) * 0.02)
        self.blocks = nn.ModuleList(VitBlock(dim, plain) for _ in range(8))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, 10)

    def forward(self, x):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


class Residual(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return x + self.fn(x)


def activated(*layers):
    return [*layers, nn.GELU(), nn.BatchNorm2d(256, eps=1e-3, momentum=0.01)]


class ConvMixer(nn.Module):
    def __init__(self, plain):
        super().__init__()
        self.stem = nn.Sequential(*activated(nn.Conv2d(3, 256, 2, 2)))
        depthwise = lambda: nn.Conv2d(256, 256, 5, groups=256, padding=2)
        self.blocks = nn.Sequential(
            *[
                nn.Sequential(Residual(nn.Sequential(*activated(depthwise()))), *activated(nn.Conv2d(256, 256, 1)))
                for _ in range(8)
            ]
        )
        self.head = nn.Linear(256, 10)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Trunk(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pw1, self.pw2 = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1)
        self.conv3 = nn.Conv2d(dim, dim, 3, padding=1)
        self.se1, self.se2 = nn.Linear(dim, dim // 8, bias=False), nn.Linear(dim // 8, dim, bias=False)

    def forward(self, x):
        y = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = F.gelu(self.pw1(y), approximate="tanh")
        y = F.gelu(self.conv3(y), approximate="tanh")
        y = y * self.se2(F.relu(self.se1(y.mean((2, 3))))).sigmoid()[:, :, None, None]
        return x + self.pw2(y)


class PatchConvNet(nn.Module):
    def __init__(self, plain):
        super().__init__()
        dim = 256
        self.stem = nn.ModuleList([nn.Conv2d(3, 128, 3, 2), nn.Conv2d(128, dim, 3, 2)])
        self.trunk = Trunk(dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim, eps=1e-6) for _ in range(3))
        self.q, self.k, self.v, self.proj, self.fc1, self.fc2 = (nn.Linear(dim, dim) for _ in range(6))
        self.head = nn.Linear(dim, 10)
        self.plain = plain

    def forward(self, x):
        for conv in self.stem:
            x = F.gelu(conv(F.pad(x, (0, 1, 0, 1))), approximate="tanh")
        for _ in range(2):
            x = self.trunk(x)
        cls = self.cls_token.expand(len(x), -1, -1)
        seen = self.norm1(torch.cat([cls, x.flatten(2).transpose(1, 2)], 1))
        q, k, v = self.q(seen[:, :1]), self.k(seen), self.v(seen)
        drop = 0.2 if self.training else 0.0
        x = cls + self.proj(attend(q[:, None], k[:, None], v[:, None], drop, self.plain)[:, 0])
        x = self.norm3(self.norm2(x))
        y = F.dropout(F.gelu(self.fc1(x), approximate="tanh"), 0.2, self.training)
        return self.head((x + F.gelu(self.fc2(y), approximate="tanh"))[:, 0])


def gcvit(plain):
    import timm

    # timm's attention is explicit products of matrices in any case.
    return timm.create_model("gcvit_xxtiny", num_classes=5, drop_path_rate=0.2)


# Network, side of its images.
NETWORKS = {
    "cct_reference": (Cct, 32),
    "vit_reference": (Vit, 72),
    "convmixer_reference": (ConvMixer, 32),
    "patchconvnet_reference": (PatchConvNet, 48),
    "gcvit_xxtiny": (gcvit, 224),
}
