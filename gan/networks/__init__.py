"""Networks; importing this package registers all of them."""

from gan.networks import classifier, dcgan, mlp, wnet

__all__ = ["classifier", "dcgan", "mlp", "wnet"]
