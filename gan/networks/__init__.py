"""Networks; importing this package registers all of them."""

from gan.networks import classifier, dcgan, mlp, patch, resnet, resnext, translator, unet, wnet
