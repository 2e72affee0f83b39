"""Networks of the library pytorch-forecasting behind the interface of forecasters.

They are the library's own, with its names and defaults for their options. Each channel is a series
to them and all share the weights. The features of time (calendar and covariates) are its known
reals.

A window goes in as the library's ``TimeSeriesDataSet`` gives it. With ``normalise`` that is with
its default normaliser of targets for look-backs above 20: the mean of the look-back is subtracted,
its deviation divided by, and both are restored in the forecast. Of a look-back that does not change
only the mean is subtracted; the library divides by 1e-7 there. Without ``normalise`` the values go
in as they are.

The library's networks are LightningModules. Here they are plain modules: none of their steps, logs
or hyper-parameters take part in training, and a checkpoint holds their weights alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from timeseries.models.sizes import check_sizes, split_outputs

_TARGET = "value"


class _LibraryForecaster(nn.Module):
    """What the three share: ``network``, and windows in the library's form.

    ``relative_time`` adds the library's feature of that name: steps from the first forecast, as a
    share of the look-back.
    """

    reads_time = True
    relative_time = False
    network: Any

    def __init__(
        self, lookback: int, horizon: int, channels: int, time_features: int, normalise: bool
    ) -> None:
        super().__init__()
        check_sizes(lookback=lookback, horizon=horizon, channels=channels)
        if time_features < 0:
            raise ValueError(f"time_features is {time_features}; it must be at least 0")
        self.horizon, self.normalise = horizon, normalise
        self.known = [f"time_{i}" for i in range(time_features)]
        if self.relative_time:
            self.known.append("relative_time_idx")

    def build(self, kind: str, loss: nn.Module, **options: Any) -> Any:
        """The library's model of that class name, for this module's variables."""
        import pytorch_forecasting
        from pytorch_forecasting.data.encoders import TorchNormalizer

        variables = [*self.known, _TARGET]
        with warnings.catch_warnings():
            # the library keeps modules as hyper-parameters of its own, which nothing here saves
            kept = "Attribute '(loss|logging_metrics)' is an instance of `nn.Module`"
            warnings.filterwarnings("ignore", kept, UserWarning)
            return getattr(pytorch_forecasting, kind)(
                x_reals=variables,
                time_varying_reals_encoder=variables,
                time_varying_reals_decoder=self.known,
                output_transformer=TorchNormalizer(),
                dataset_parameters={"target": _TARGET},
                loss=loss,
                logging_metrics=nn.ModuleList(),
                **options,
            )

    def inputs(
        self, past: Tensor, past_time: Tensor, future_time: Tensor, future: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What the library's networks read of the ``x`` of its data set, a channel a row: window by
        window, the channels of a window in their order. Without ``future`` zeros stand for it."""
        batch, lookback, channels = past.shape
        if future is None:
            future = past.new_zeros(batch, self.horizon, channels)
        rows = torch.cat([past, future], dim=1).transpose(1, 2).flatten(0, 1)
        scale = self._scale(rows[:, :lookback])
        target = (rows - scale[:, :1]) / scale[:, 1:]
        known = torch.cat([past_time, future_time], dim=1)
        if self.relative_time:
            steps = torch.arange(-lookback, self.horizon, device=past.device, dtype=past.dtype)
            relative = (steps / lookback)[None, :, None].expand(batch, -1, 1)
            known = torch.cat([known, relative], dim=2)
        cont = torch.cat([known.repeat_interleave(channels, 0), target[..., None]], dim=2)
        cat = torch.zeros(*cont.shape[:2], 0, dtype=torch.long, device=past.device)
        lengths = torch.ones(len(rows), dtype=torch.long, device=past.device)
        return {
            "encoder_cont": cont[:, :lookback],
            "decoder_cont": cont[:, lookback:],
            "encoder_cat": cat[:, :lookback],
            "decoder_cat": cat[:, lookback:],
            "encoder_lengths": lengths * lookback,
            "decoder_lengths": lengths * self.horizon,
            "target_scale": scale,
        }

    def _scale(self, past: Tensor) -> Tensor:
        """Centre and scale of each row, (rows, 2)."""
        zero = torch.zeros_like(past[:, 0])
        if not self.normalise:
            return torch.stack([zero, zero + 1], dim=1)
        constant = past.amax(1) == past.amin(1)
        # the correction of the library; the deviation of one value alone is not a number
        std = past.std(1, correction=min(1, past.shape[1] - 1)) + torch.finfo(past.dtype).eps
        return torch.stack([past.mean(1), torch.where(constant, zero + 1, std)], dim=1)

    def placed(self) -> Any:
        """The network, told where it is. It makes tensors on the device that Lightning last moved
        it to, and PyTorch's own ``to`` and ``double`` do not tell it."""
        weight = next(self.network.parameters())
        if (self.network.device, self.network.dtype) != (weight.device, weight.dtype):
            self.network.to(weight)
        return self.network


class _DirectForecaster(_LibraryForecaster):
    """A network that gives the whole horizon at once, ``outputs`` numbers for each value."""

    outputs: int

    def forward(self, past: Tensor, past_time: Tensor, future_time: Tensor) -> Tensor:
        """(batch, horizon, channels[, outputs]) from ``past`` (batch, lookback, channels)."""
        x = self.inputs(past, past_time, future_time)
        y = self.placed()(x)["prediction"]
        return split_outputs(y.flatten(1).unflatten(0, (-1, past.shape[2])), self.outputs)


class NHiTS(_DirectForecaster):
    """N-HiTS (Challu et al. 2023, arXiv 2201.12886) of pytorch-forecasting.

    Each of ``n_blocks`` is a stack, of so many blocks with the same weights. ``pooling_sizes`` and
    ``downsample_frequencies`` are the stacks' kernels of pooling and their steps between knots, by
    default the library's choice for the horizon. The library's blocks have two hidden layers; the
    forecast starts from the last value of the look-back. ``outputs`` above 1 gives as many numbers
    for each value, in a last axis: quantiles, or, without ``normalise``, the parameters of a
    distribution.

    Raises ValueError for a size below 1 and for lists of another length than ``n_blocks``.
    """

    def __init__(
        self,
        lookback: int = 0,
        horizon: int = 0,
        channels: int = 0,
        time_features: int = 0,
        hidden_size: int = 512,
        n_blocks: tuple[int, ...] = (1, 1, 1),
        pooling_sizes: tuple[int, ...] | None = None,
        downsample_frequencies: tuple[int, ...] | None = None,
        dropout: float = 0.0,
        normalise: bool = True,
        outputs: int = 1,
    ) -> None:
        super().__init__(lookback, horizon, channels, time_features, normalise)
        from pytorch_forecasting.metrics import MAE

        check_sizes(hidden_size=hidden_size, outputs=outputs)
        _check_stacks(len(n_blocks), n_blocks=n_blocks)
        _check_stacks(len(n_blocks), pooling_sizes=pooling_sizes)
        _check_stacks(len(n_blocks), downsample_frequencies=downsample_frequencies)
        self.outputs = outputs
        self.network = self.build(
            "NHiTS",
            MAE(),  # sets how outputs are rescaled; the task has the loss
            context_length=lookback,
            prediction_length=horizon,
            output_size=outputs,
            hidden_size=hidden_size,
            n_blocks=list(n_blocks),
            pooling_sizes=pooling_sizes and list(pooling_sizes),
            downsample_frequencies=downsample_frequencies and list(downsample_frequencies),
            dropout=dropout,
        )


class TemporalFusionTransformer(_DirectForecaster):
    """Temporal Fusion Transformer (Lim et al. 2021, arXiv 1912.09363) of pytorch-forecasting.

    Known inputs are the calendar features and the place in the window. The library's attention lets
    a forecast step see the look-back and earlier forecast steps, but not itself. ``outputs`` above
    1 gives as many numbers for each value, in a last axis: the paper's quantiles, or, without
    ``normalise``, the parameters of a distribution. The library's interpolations over features are
    computed as products.

    Raises ValueError for a size below 1 and for more heads than ``hidden_size``.
    """

    relative_time = True

    def __init__(
        self,
        lookback: int = 0,
        horizon: int = 0,
        channels: int = 0,
        time_features: int = 0,
        hidden_size: int = 16,
        hidden_continuous_size: int = 8,
        lstm_layers: int = 1,
        attention_head_size: int = 4,
        dropout: float = 0.1,
        normalise: bool = True,
        outputs: int = 1,
    ) -> None:
        super().__init__(lookback, horizon, channels, time_features, normalise)
        from pytorch_forecasting.metrics import MAE

        check_sizes(hidden_size=hidden_size, hidden_continuous_size=hidden_continuous_size)
        check_sizes(lstm_layers=lstm_layers, attention_head_size=attention_head_size)
        check_sizes(outputs=outputs)
        if attention_head_size > hidden_size:
            raise ValueError(
                f"attention_head_size is {attention_head_size} and hidden_size {hidden_size}; "
                "give at most as many heads as that"
            )
        self.outputs = outputs
        self.network = self.build(
            "TemporalFusionTransformer",
            MAE(),  # sets how outputs are rescaled; the task has the loss
            max_encoder_length=lookback,
            output_size=outputs,
            hidden_size=hidden_size,
            hidden_continuous_size=hidden_continuous_size,
            lstm_layers=lstm_layers,
            attention_head_size=attention_head_size,
            dropout=dropout,
            mask_bias=-torch.inf,  # the library's -1e9 is no number in float16
        )
        _interpolate_by_products(self.network)


class _Interpolation(nn.Module):
    """Linear interpolation of the last axis at ``size`` places from end to end, as a product.

    PyTorch's kernel on GPUs takes ``size`` threads in all, each of which walks over every row; here
    a row is a step of a channel of a window.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        units = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)[:, None]
        return x @ F.interpolate(units, self.size, mode="linear", align_corners=True)[:, 0]


def _interpolate_by_products(network: nn.Module) -> None:
    """The library's interpolations in ``network``, which have no weights, as products."""
    from pytorch_forecasting.models.temporal_fusion_transformer.sub_modules import (
        TimeDistributedInterpolation,
    )

    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, TimeDistributedInterpolation) and not child.trainable:
                setattr(module, name, _Interpolation(child.output_size))


class DeepAR(_LibraryForecaster):
    """DeepAR (Salinas et al. 2020, arXiv 1704.04110) of pytorch-forecasting, with a normal
    distribution.

    It is to be trained with ``training_loss``. A forecast is decoded step by step. With ``samples``
    0 each step sees the mean of the one before: one path. Otherwise that many paths are drawn, each
    step seeing a draw from the one before, and the forecast is the mean over paths of the means of
    their steps. The draws are the same in every call and for every window, from a fixed seed.

    Raises ValueError for a size below 1 and for ``samples`` below 0.
    """

    def __init__(
        self,
        lookback: int = 0,
        horizon: int = 0,
        channels: int = 0,
        time_features: int = 0,
        hidden_size: int = 10,
        rnn_layers: int = 2,
        dropout: float = 0.1,
        normalise: bool = True,
        samples: int = 0,
    ) -> None:
        super().__init__(lookback, horizon, channels, time_features, normalise)
        from pytorch_forecasting.metrics import NormalDistributionLoss

        check_sizes(hidden_size=hidden_size, rnn_layers=rnn_layers)
        if samples < 0:
            raise ValueError(f"samples is {samples}; give a number of paths, or 0 for the mean's")
        self.samples = samples
        self.network = self.build(
            "DeepAR",
            NormalDistributionLoss(),
            target=_TARGET,
            hidden_size=hidden_size,
            rnn_layers=rnn_layers,
            dropout=dropout,
        )

    def forward(self, past: Tensor, past_time: Tensor, future_time: Tensor) -> Tensor:
        """(batch, horizon, channels) from ``past`` (batch, lookback, channels)."""
        x = self.inputs(past, past_time, future_time)
        network = self.placed()
        rows, paths = len(x["target_scale"]), max(1, self.samples)
        hidden = network.rnn.repeat_interleave(network.encode(x), paths)
        known = x["decoder_cont"][..., :-1].repeat_interleave(paths, 0)
        latest = x["encoder_cont"][:, -1, -1].repeat_interleave(paths, 0)
        means = []
        for step, noise in enumerate(self._noise(past)):
            given = torch.cat([known[:, step], latest[:, None]], dim=1)
            parameters, hidden = network.decode_all(given[:, None], hidden)
            mean, raw = parameters[:, 0].unbind(-1)
            latest = mean + F.softplus(raw) * noise.repeat(rows)
            means.append(mean.unflatten(0, (rows, paths)).mean(1))
        centre, scale = x["target_scale"].split(1, dim=1)
        y = torch.stack(means, dim=1) * scale + centre
        return y.unflatten(0, (-1, past.shape[2])).transpose(1, 2)

    def _noise(self, like: Tensor) -> Tensor:
        """(horizon, paths), standard normal; zeros for the path of means."""
        if not self.samples:
            return like.new_zeros(self.horizon, 1)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.horizon, self.samples, generator=generator).to(like)

    def training_loss(
        self, past: Tensor, past_time: Tensor, future_time: Tensor, future: Tensor
    ) -> Tensor:
        """Mean negative log-likelihood of ``future`` (batch, horizon, channels), each step given
        the true value before it, as in the library; the paper's (equation 2) counts the look-back's
        values as well."""
        network = self.placed()
        parameters = network(self.inputs(past, past_time, future_time, future))["prediction"]
        return network.loss.loss(parameters.float(), future.transpose(1, 2).flatten(0, 1)).mean()


def _check_stacks(stacks: int, **sizes: Sequence[int] | None) -> None:
    """Raises ValueError for sizes below 1 and for another number of sizes than there are stacks."""
    for name, given in sizes.items():
        if given is not None and (len(given) != max(1, stacks) or min(given) < 1):
            raise ValueError(
                f"{name} is {list(given)}; give one number above 0 for each stack of n_blocks"
            )
