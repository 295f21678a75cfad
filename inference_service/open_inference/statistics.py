"""What the models did in ModelInfer, in Triton's terms. Pure: the time comes in."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sightline.openinference.v2 import open_inference_pb2 as oip

from inference_service.models.engine import Model
from inference_service.open_inference.tensors import Tensor
from inference_service.serving.work import Ran

_STAGES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass(slots=True)
class _Total:
    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds


@dataclass(slots=True)
class _ModelCounts:
    last: float = 0.0
    rows: int = 0
    runs: float = 0.0
    stages: dict[str, _Total] = field(default_factory=lambda: {name: _Total() for name in _STAGES})


class Statistics:
    """Counts since the start, for each version of a model."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], _ModelCounts] = {}

    def answered(
        self, model: Model, ran: Sequence[Ran[list[Tensor]]], rows: int, seconds: float, now: float
    ) -> None:
        """Take in a request that was answered.

        Args:
            model: that answered it.
            ran: its members.
            rows: of its input.
            seconds: from its arrival to its answer.
            now: Unix seconds.
        """
        counts = self._counts(model, now)
        counts.rows += rows
        # Of a run that several members share, each counts its part, in time as well.
        counts.runs += sum(1 / each.batch for each in ran)
        for name, took in (
            ("success", seconds),
            ("queue", max(each.waited for each in ran)),
            ("compute_input", sum(each.decode for each in ran)),
            ("compute_infer", sum(each.infer / each.batch for each in ran)),
            ("compute_output", sum(each.post for each in ran)),
        ):
            counts.stages[name].add(took)

    def failed(self, model: Model, seconds: float, now: float) -> None:
        """Take in a request that got an error, so many seconds after its arrival."""
        self._counts(model, now).stages["fail"].add(seconds)

    def message(self, models: Iterable[Model]) -> oip.ModelStatisticsResponse:
        """Return the counts of these models."""
        return oip.ModelStatisticsResponse(model_stats=[self._message(model) for model in models])

    def _counts(self, model: Model, now: float) -> _ModelCounts:
        counts = self._models.setdefault((model.name, model.version), _ModelCounts())
        counts.last = now
        return counts

    def _message(self, model: Model) -> oip.ModelStatistics:
        counts = self._models.get((model.name, model.version), _ModelCounts())
        stages = {
            name: oip.StatisticDuration(count=total.count, ns=round(total.seconds * 1e9))
            for name, total in counts.stages.items()
        }
        return oip.ModelStatistics(
            name=model.name,
            version=model.version,
            last_inference=round(counts.last * 1000),
            inference_count=counts.rows,
            execution_count=round(counts.runs),
            inference_stats=oip.InferStatistics(**stages),
        )
