"""Operations that pyinfra does not have."""
