# Exercise 1: forgets the minus
def simple_edm(flow, s, t, sigma_d=.5):
    return flow.dot(s, t) / flow.dot(t, t), sigma_d * flow.wedge(s, t) / flow.dot(t, t).sqrt()

# Exercise 1: forgets sigma_d
def simple_edm(flow, s, t, sigma_d=.5):
    return flow.dot(s, t) / flow.dot(t, t), -flow.wedge(s, t) / flow.dot(t, t).sqrt()

# Exercise 1: gives the coefficients of the guess
def simple_edm(flow, s, t, sigma_d=.5):
    v = flow.dot(t, t)
    return flow.alpha(t) / v, -sigma_d * flow.sigma(t) / v.sqrt()

# Exercise 1: swaps s and t
def simple_edm(flow, s, t, sigma_d=.5):
    s, t = t, s
    return flow.dot(s, t) / flow.dot(t, t), -sigma_d * flow.wedge(s, t) / flow.dot(t, t).sqrt()

# Exercise 1: writes sigma_d as a number
def simple_edm(flow, s, t, sigma_d=.5):
    return flow.dot(s, t) / flow.dot(t, t), -.5 * flow.wedge(s, t) / flow.dot(t, t).sqrt()

# Exercise 2: forgets the square
def kept(flow, times):
    t, s = times[:-1], times[1:]
    return (flow.dot(s, t) / (flow.dot(s, s) * flow.dot(t, t)).sqrt()).prod()

# Exercise 2: treats the walk as one long jump
def kept(flow, times):
    t, s = times[0], times[-1]
    return flow.dot(s, t)**2 / (flow.dot(s, s) * flow.dot(t, t))

# Exercise 2: takes only the last jump
def kept(flow, times):
    t, s = times[-2], times[-1]
    return flow.dot(s, t)**2 / (flow.dot(s, s) * flow.dot(t, t))

# Exercise 3: uses one time, the coefficient of the guess
def kernel_weight(model, s, t):
    return 1 / model.param.c_out(model.flow, 0*s, t, model.sigma_d).abs()

# Exercise 3: forgets the absolute value
def kernel_weight(model, s, t):
    return 1 / model.param.c_out(model.flow, s, t, model.sigma_d)

# Exercise 3: leaves sigma_d at its default
def kernel_weight(model, s, t):
    return 1 / model.param.c_out(model.flow, s, t).abs()

# Exercise 3: takes 1 / (t - s)
def kernel_weight(model, s, t):
    return 1 / (t - s)

# Exercise 4: counts from zero instead of from the null jump
def guided(model, x_t, t, s, label, w):
    return w * model(x_t, t, s, label)

# Exercise 4: the other convention, in which w = 0 is no guidance
def guided(model, x_t, t, s, label, w):
    null, labelled = model(x_t, t, s), model(x_t, t, s, label)
    return labelled + w * (labelled - null)

# Exercise 4: swaps the two jumps
def guided(model, x_t, t, s, label, w):
    null, labelled = model(x_t, t, s), model(x_t, t, s, label)
    return labelled + w * (null - labelled)

# Exercise 5: simple_edm
answer = "simple_edm"

# Exercise 5: euler_fm
answer = "euler_fm"

# Exercise 5: a name that is none
answer = "x-prediction"

# Exercise 2: forgets that the variance at the end is not the one at the start
def kept(flow, times):
    t, s = times[:-1], times[1:]
    return ((flow.dot(s, t) / flow.dot(t, t))**2).prod()
