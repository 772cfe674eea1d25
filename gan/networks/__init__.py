"""Networks; importing this package registers all of them."""

from gan.networks import classifier, dcgan, mlp, resnet, wnet

__all__ = ["classifier", "dcgan", "mlp", "resnet", "wnet"]
