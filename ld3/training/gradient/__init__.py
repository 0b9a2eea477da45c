"""LD3 as published: gradients by reverse mode through the whole few-step sampling, with respect to
noise levels, decoupled times and start noises."""
