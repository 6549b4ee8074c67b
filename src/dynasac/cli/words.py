"""Sentences that several commands say."""


def worth(env_id: str, measured, regret: float | None) -> str:
    against = "" if regret is None else f", {regret:.1f} below the optimum"
    said = f"\n  {measured.beyond}" if measured.beyond else ""
    return (
        f"{env_id}: mean return {measured.mean_return:.1f} ± {measured.std_return:.1f} over "
        f"{len(measured.returns)} episodes{against}{said}"
    )
