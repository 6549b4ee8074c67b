"""Sentences that several commands say."""


def worth(env_id: str, measured, regret: float | None) -> str:
    against = "" if regret is None else f", {regret:.1f} below the optimum"
    said = "".join(f"\n  {note}" for note in (measured.beyond, measured.unseeded) if note)
    return (
        f"{env_id}: mean return {measured.mean_return:.1f} ± {measured.std_return:.1f} over "
        f"{len(measured.returns)} episodes{against}{said}"
    )
