"Mistakes that people make in the exercises of chapter 01"

# Exercise 1: signal over noise
answer = .006 / .994

# Exercise 1: forgets the division
answer = .994

# Exercise 1: a slip of the decimal point
answer = 16.6

# Exercise 2: forgets the root
def time_of_snr(snr):
    return 2/math.pi * torch.atan(1/snr)

# Exercise 2: the formula of the other schedule
def time_of_snr(snr):
    return 1 / (1 + snr.sqrt())

# Exercise 2: upside down
def time_of_snr(snr):
    return 2/math.pi * torch.atan(snr.sqrt())

# Exercise 2: an angle in place of a time
def time_of_snr(snr):
    return torch.atan(snr**-.5)

# Exercise 2: one number only
def time_of_snr(snr):
    return .5

# Exercise 3: only the ratio is turned round
def ddim(x_t, x, s, t, flow):
    ratio = flow.sigma(s) / flow.sigma(t)
    return (flow.alpha(t) - ratio*flow.alpha(s))*x + ratio*x_t

# Exercise 3: only the signal is turned round
def ddim(x_t, x, s, t, flow):
    ratio = flow.sigma(t) / flow.sigma(s)
    return (flow.alpha(s) - ratio*flow.alpha(t))*x + ratio*x_t

# Exercise 3: the guess and the noisy point are swapped
def ddim(x_t, x, s, t, flow):
    ratio = flow.sigma(s) / flow.sigma(t)
    return (flow.alpha(s) - ratio*flow.alpha(t))*x_t + ratio*x

# Exercise 3: the formula of straight lines for every schedule
def ddim(x_t, x, s, t, flow):
    return x + s/t*(x_t - x)

# Exercise 4: only the first term of the series
def gap(t, u):
    return u * (1 - t)**2

# Exercise 4: the sign of the denominator
def gap(t, u):
    return u * (1 - t)**2 / (1 + u*(1 - t))

# Exercise 4: simplified, and still a difference of neighbours
def gap(t, u):
    return t - (t - u*(1 - t)) / (1 - u*(1 - t))

# Exercise 4: computed in float64 after the digits are gone
def gap(t, u):
    eta = t / (1 - t)
    return (t.double() - 1 / (1 + 1/(eta - u)).double()).float()

# Exercise 5: fills up by 1 - rho, so that the noise shrinks
def draw(x_t, x, xi, s, t, kappa, flow):
    rho = (flow.eta(s) / flow.eta(t))**kappa
    eps = (x_t - flow.alpha(t)*x) / flow.sigma(t)
    return flow.alpha(s)*x + flow.sigma(s)*(rho*eps + (1 - rho)*xi)

# Exercise 5: the dial on the fresh noise instead of the kept share
def draw(x_t, x, xi, s, t, kappa, flow):
    rho = flow.eta(s) / flow.eta(t)
    eps = (x_t - flow.alpha(t)*x) / flow.sigma(t)
    return flow.alpha(s)*x + flow.sigma(s)*((1 - kappa**2*(1 - rho**2)).abs().sqrt()*eps + kappa*(1 - rho**2).sqrt()*xi)

# Exercise 5: takes the noise out at the wrong time
def draw(x_t, x, xi, s, t, kappa, flow):
    rho = (flow.eta(s) / flow.eta(t))**kappa
    eps = (x_t - flow.alpha(s)*x) / flow.sigma(s)
    return flow.alpha(s)*x + flow.sigma(s)*(rho*eps + (1 - rho**2).sqrt()*xi)

# Exercise 5: sigma_s/sigma_t in place of eta_s/eta_t
def draw(x_t, x, xi, s, t, kappa, flow):
    rho = (flow.sigma(s) / flow.sigma(t))**kappa
    eps = (x_t - flow.alpha(t)*x) / flow.sigma(t)
    return flow.alpha(s)*x + flow.sigma(s)*(rho*eps + (1 - rho**2).sqrt()*xi)
