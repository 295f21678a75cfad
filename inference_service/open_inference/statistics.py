"""Statistics of `ModelInfer` per model, in Triton's terms. Pure: the time is an argument."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sightline.openinference.v2 import open_inference_pb2 as oip

from inference_service.models.engine import Model
from inference_service.open_inference.tensors import Tensor
from inference_service.serving.work import MemberResult

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
    """Counts and durations since the start, per model version."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], _ModelCounts] = {}

    def answered(
        self,
        model: Model,
        ran: Sequence[MemberResult[list[Tensor]]],
        rows: int,
        seconds: float,
        now: float,
    ) -> None:
        """Count an answered request.

        Args:
            model: the model.
            ran: the members of the request.
            rows: rows of its input.
            seconds: time from its arrival to its response.
            now: Unix seconds.
        """
        counts = self._counts(model, now)
        counts.rows += rows
        # Each member counts its share of a run and of the run's duration.
        counts.runs += sum(1 / member.batch for member in ran)
        for name, duration in (
            ("success", seconds),
            ("queue", max(member.waited for member in ran)),
            ("compute_input", sum(member.decode for member in ran)),
            ("compute_infer", sum(member.infer / member.batch for member in ran)),
            ("compute_output", sum(member.post for member in ran)),
        ):
            counts.stages[name].add(duration)

    def failed(self, model: Model, seconds: float, now: float) -> None:
        """Count a failed request, `seconds` after its arrival."""
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
