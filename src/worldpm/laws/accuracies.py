"""Laws of accuracies. An accuracy rises, so the law is fitted to the error, 1 - accuracy, which
falls like a loss; files and figures show the accuracy."""

from dataclasses import replace

from worldpm.laws.evidence import Points
from worldpm.laws.law import XY, Curve, Ends, Foretold, HeldOut, Influence, Law, Prediction


def as_errors(points: Points) -> Points:
    """The points with errors instead of accuracies."""
    return replace(points, y=1 - points.y)


def as_accuracies(law: Law) -> Law:
    """The law of an error, shown as the accuracy. Parameters and residuals stay those of the
    error."""
    return replace(
        law,
        equation=f"1 - ({law.equation})",
        foretold=[_foretold(foretold) for foretold in law.foretold],
        influence=_influence(law.influence) if law.influence else None,
        used=[XY(x, 1 - error) for x, error in law.used] if law.used is not None else None,
        curve=_curve(law.curve) if law.curve else None,
        curves=[replace(part, curve=_curve(part.curve)) for part in law.curves]
        if law.curves is not None
        else None,
        held_out=_held_out(law.held_out) if law.held_out else None,
    )


def _turned(error: float | None) -> float | None:
    return None if error is None else 1 - error


def _foretold(foretold: Foretold) -> Foretold:
    low, high = foretold.interval
    return replace(foretold, y=_turned(foretold.y), interval=Ends(_turned(high), _turned(low)))


def _influence(influence: Influence) -> Influence:
    return replace(influence, y=1 - influence.y)


def _curve(curve: Curve) -> Curve:
    return replace(
        curve,
        y=list(map(_turned, curve.y)),
        low=list(map(_turned, curve.high)),
        high=list(map(_turned, curve.low)),
    )


def _held_out(held_out: HeldOut) -> HeldOut:
    predictions = [_prediction(prediction) for prediction in held_out.predictions]
    errors = [row.relative_error for row in predictions if row.relative_error is not None]
    return replace(
        held_out,
        relative_error=sum(errors) / len(errors) if errors else None,
        predictions=predictions,
    )


def _prediction(prediction: Prediction) -> Prediction:
    accuracy, predicted = 1 - prediction.y, _turned(prediction.predicted)
    known = predicted is not None and accuracy > 0
    error = abs((predicted or 0.0) - accuracy) / accuracy if known else None
    return replace(prediction, y=accuracy, predicted=predicted, relative_error=error)
