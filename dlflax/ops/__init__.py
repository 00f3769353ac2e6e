"""Operations in the implementation that suits the platform, and their FLOPs."""
