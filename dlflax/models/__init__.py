"""Linen modules, one architecture a file. A module's fields are its config."""

from dlflax.models.autoencoder import Autoencoder
from dlflax.models.cnn import CNN
from dlflax.models.efficientnet import EfficientNetLite0
from dlflax.models.minilm import MiniLM
from dlflax.models.mlp import MLP
from dlflax.models.nnx import from_nnx
from dlflax.models.resnet import ResNet, SmallResNet
from dlflax.models.rnn import RNN
from dlflax.models.transformer import Transformer
from dlflax.models.vgg import VGG

__all__ = [
    "CNN", "MLP", "RNN", "VGG",
    "Autoencoder", "EfficientNetLite0", "MiniLM", "ResNet", "SmallResNet", "Transformer",
    "from_nnx",
]  # fmt: skip
