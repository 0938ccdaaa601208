# SPDX-License-Identifier: Apache-2.0
"""Networks that users bring: a Keras file, or a function that makes a model."""

import difflib
import functools
import importlib
import importlib.util
import inspect
import os
import sys

import keras
from keras import layers

from ssl_noisy import contract
from ssl_noisy.errors import UserError, one_line
from ssl_noisy.networks.batch_norm import set_batch_norm
from ssl_noisy.networks.layers import fused

SUFFIX = ".keras"
ENDS = ("softmax", "sigmoid")


def is_file(name):
    return name.endswith(SUFFIX)


def is_function(name):
    return ":" in name


# A file.


def check_file(path):
    """Raises the `UserError` of a file that is not there."""
    if not os.path.isfile(path):
        raise UserError(f"There is no file {path}. --network=FILE{SUFFIX} takes a Keras model.")


def from_file(
    path,
    image_shape,
    num_classes,
    *,
    notes=None,
    batch_norm_momentum=None,
    batch_norm_epsilon=None,
):
    """Loads a network to continue training it, with a last layer for these classes.

    Args:
        path: Path of a `.keras` file. It is read in Keras's safe mode, which runs no code in it.
        image_shape: Tuple `(height, width, channels)` of the images.
        num_classes: Integer, the number of logits. If the network has another number of outputs,
            its last dense layer is replaced by a new one.
        notes: List to which lines about changes to the network are appended.
        batch_norm_momentum: As in `networks.build`. None means that of the file.
        batch_norm_epsilon: As in `networks.build`. None means that of the file.

    Returns:
        A `keras.Model` from pixels to logits, with the weights of the file.

    Raises:
        UserError: If the file cannot be loaded, or the network does not take these images.
    """
    check_file(path)
    try:
        network = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # of Keras, of the zip file, of the user's classes
        raise UserError(
            f"--network={path} cannot be loaded: {one_line(error)}. Save a model with "
            f"`model.save`. If it has classes of your own, use --network=FILE.py:FUNCTION."
        ) from error
    _check_images(network, path, image_shape)
    _check_precision(network, path)
    is_graph = hasattr(network, "output_shape")
    network, changes = _fitted(network, num_classes) if is_graph else (network, [])
    if contract.num_logits(network) != num_classes:
        raise UserError(
            f"The last layer of --network={path} cannot be replaced, since it is a subclassed "
            f"model. Use --network=FILE.py:FUNCTION. Received: {contract.num_logits(network)} "
            f"outputs for {num_classes} classes"
        )
    if is_graph:
        network = fused(_with_static_input(network, image_shape))
    set_batch_norm(network, batch_norm_momentum, batch_norm_epsilon)
    if notes is not None:
        notes += [f"{os.path.basename(path)}: {change}" for change in changes]
    return network


def _check_images(network, path, image_shape):
    takes = getattr(network, "input_shape", None)
    if takes is None or contract.matches(takes, (None, *image_shape)):
        return
    if not isinstance(takes, (tuple, list)) or len(takes) != 4:
        advice = "A network must have one input, (height, width, channels)."
    elif takes[3] not in (None, image_shape[2]):
        advice = "Use images with as many channels."
    else:
        advice = f"Resize the images with --image_size={takes[1]}."
    raise UserError(
        f"--network={path} takes images of shape {_shape(takes)}, but those of the data set have "
        f"the shape {_shape((None, *image_shape))}. {advice}"
    )


def _shape(batch_shape):
    """Returns the shape of an image as text: `32x32x3`, with `?` for any size."""
    if not isinstance(batch_shape, (tuple, list)):
        return str(batch_shape)
    return "x".join("?" if side is None else str(side) for side in batch_shape[1:])


def _check_precision(network, path):
    """Layers keep the policy that they were saved with, which --precision does not change."""
    wanted = keras.config.dtype_policy().name
    policies = {layer.dtype_policy.name for layer in contract.leaves(network) if layer.weights}
    if wanted != "float32" and wanted not in policies:
        raise UserError(
            f"--precision={wanted} has no effect on --network={path}, whose layers were saved as "
            f"{', '.join(sorted(policies))}. Leave it out, or save the model under that policy."
        )


def _with_static_input(network, image_shape):
    """Returns the network on images of one size, if it takes any: then costs can be estimated."""
    if None not in network.input_shape[1:]:
        return network
    inputs = keras.Input(image_shape, dtype=network.inputs[0].dtype)
    # `network.input` may be a list or dict of one tensor.
    same = keras.models.clone_model(
        network,
        input_tensors=keras.tree.map_structure(lambda _: inputs, network.input),
        clone_function=lambda layer: layer,
    )
    return keras.Model(same.inputs, same.outputs[0], name=network.name)


def _fitted(network, num_classes):
    """Makes a Sequential or functional model return `num_classes` logits.

    Returns:
        The model, and a list of what was changed in it.
    """
    if len(network.outputs) != 1:
        raise UserError(
            f"A network must have one output. Received: {network.name!r} with "
            f"{len(network.outputs)} outputs"
        )
    sequential = isinstance(network, keras.Sequential)
    last = network.layers[-1] if sequential else network.operations[-1]
    shape = network.output_shape
    if _is_activation(last):
        # Its input as the output; the layers of a Sequential model may belong to other graphs too.
        if sequential:
            inputs = keras.Input(network.input_shape[1:], dtype=network.inputs[0].dtype)
            shorter = keras.Sequential([inputs, *network.layers[:-1]], name=network.name)
        else:
            shorter = keras.Model(network.inputs, last.input, name=network.name)
        shorter, changes = _fitted(shorter, num_classes)
        return shorter, [f"removed the last activation, {last.name}", *changes]
    if isinstance(last, keras.Model):
        inner, changes = _fitted(last, num_classes)
        return (_replaced(network, last, inner) if changes else network), changes
    if isinstance(last, layers.Dense) and len(shape) == 2:
        return _fitted_dense(network, last, num_classes)
    if len(shape) == 2 and shape[1] == num_classes:
        return network, []
    if len(shape) not in (2, 4):
        raise UserError(
            f"A network must return logits or features. Received: {network.name!r} with an output "
            f"of shape {shape}"
        )
    features = network.outputs[0]
    pooled = layers.GlobalAveragePooling2D()(features) if len(shape) == 4 else features
    logits = _new_head(network, num_classes)(pooled)
    change = f"added a new last layer of {num_classes} classes to its {shape[-1]} features"
    return keras.Model(network.inputs, logits, name=network.name), [change]


def _fitted_dense(network, last, num_classes):
    """Returns a network that ends in a dense layer with `num_classes` logits, and the changes."""
    if last.units != num_classes:
        new = _replaced(network, last, _new_head(network, num_classes))
        return new, [f"replaced its last layer of {last.units} classes by one of {num_classes}"]
    kind = keras.activations.serialize(last.activation)
    if kind == "linear":
        return network, []
    last.activation = keras.activations.linear
    return network, [f"removed the {kind} of its last layer, {last.name}"]


def _is_activation(operation):
    """Whether an operation is a softmax or sigmoid by itself."""
    if isinstance(operation, layers.Activation):
        return keras.activations.serialize(operation.activation) in ENDS
    return type(operation).__name__.lower() in ENDS


def _new_head(network, num_classes):
    taken = {layer.name for layer in contract.leaves(network)} - {network.layers[-1].name}
    name = "logits" if "logits" not in taken else None
    return layers.Dense(num_classes, dtype="float32", name=name)


def _replaced(network, old, new):
    """Returns a model of the same layers, with `new` at the place of `old`."""
    return keras.models.clone_model(
        network, clone_function=lambda layer: new if layer is old else layer
    )


# A function.


def from_function(name, image_shape, num_classes):
    """Calls the user's function for a network.

    Args:
        name: `module:function` or `path/to/file.py:function`.
        image_shape: Tuple `(height, width, channels)`, its first argument.
        num_classes: Integer, its second argument.

    Returns:
        What the function returns, a `keras.Model`.

    Raises:
        UserError: If there is no such function, if it takes other arguments, or returns something
            else. Exceptions within it are not caught.
    """
    function = find_function(name)
    network = function(tuple(image_shape), num_classes)
    if not isinstance(network, keras.Model):
        raise UserError(
            f"--network={name} must return a keras.Model. Received: a {type(network).__name__}"
        )
    try:
        contract.check(network, image_shape, num_classes)
    except UserError as error:
        raise UserError(f"--network={name}: {error}") from error
    return network


def find_function(name):
    """Imports the function of `module:function` or `path/to/file.py:function`."""
    place, _, attribute = name.rpartition(":")
    module = _file_module(place) if place.endswith(".py") else _module(place)
    function = getattr(module, attribute, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        nearest = difflib.get_close_matches(attribute, own, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise UserError(
            f"--network={name}: {place} has no function {attribute!r}.{hint} It has: "
            f"{', '.join(own) or 'none'}."
        )
    try:
        inspect.signature(function).bind((1, 1, 1), 2)
    except TypeError as error:
        raise UserError(
            f"--network={name} must take two arguments, (image_shape, num_classes). Received: "
            f"{attribute}{inspect.signature(function)}"
        ) from error
    return function


def _module(name):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # An import within the user's module that fails is the user's own error.
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(
                f"There is no module {error.name!r} for --network={name}:FUNCTION. Run from the "
                "folder that has it, or give its path: --network=path/to/file.py:FUNCTION."
            ) from error
        raise


@functools.cache  # importing it twice would register its classes twice
def _file_module(path):
    if not os.path.isfile(path):
        raise UserError(f"There is no file {path} for --network={path}:FUNCTION.")
    folder, file = os.path.split(os.path.abspath(path))
    if folder not in sys.path:
        sys.path.append(folder)  # the file may import its neighbors, as a script does
    spec = importlib.util.spec_from_file_location(file.removesuffix(".py"), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
