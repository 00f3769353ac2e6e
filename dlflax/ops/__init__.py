"""Operations in the formulation that suits the platform, and their FLOPs."""
