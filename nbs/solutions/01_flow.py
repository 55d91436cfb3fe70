"Solutions to the exercises of chapter 01"
import math

import torch


# Exercise 1
answer = 166                      # .994 / .006 = 165.67: a hundred and sixty-six times more noise than signal

# Exercise 2
def time_of_snr(snr):
    return 2/math.pi * torch.atan(snr**-.5)      # snr = 1/tan²; where it is 1 the angle is 45 degrees, so t = .5

# Exercise 3
def ddim(x_t, x, s, t, flow):
    ratio = flow.sigma(s) / flow.sigma(t)
    return (flow.alpha(s) - ratio*flow.alpha(t))*x + ratio*x_t

# Exercise 4
def gap(t, u):
    # r = (eta - u)/(1 + eta - u) with eta = t/(1 - t); multiply by 1 - t: r = (t - u(1 - t)) / (1 - u(1 - t))
    return u * (1 - t)**2 / (1 - u*(1 - t))

# Exercise 5
def draw(x_t, x, xi, s, t, kappa, flow):
    rho = (flow.eta(s) / flow.eta(t))**kappa
    eps = (x_t - flow.alpha(t)*x) / flow.sigma(t)
    return flow.alpha(s)*x + flow.sigma(s)*(rho*eps + (1 - rho**2).sqrt()*xi)
