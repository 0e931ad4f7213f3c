"""Intervals and tests of the results page and of comparisons by statsmodels and SciPy, for the tests of `report` and `run-record`.

pip install statsmodels==0.14.5 scipy==1.17.1
"""

from scipy.stats import ttest_ind
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint, proportions_ztest

for hits, n in [(8271, 10000), (352, 360), (0, 10)]:
    print("wilson", hits, n, *map(repr, map(float, proportion_confint(hits, n, method="wilson"))))
for a, n, b, m in [(8271, 10000, 8352, 10000), (350, 360, 352, 360), (8271, 10000, 1702, 2000), (9, 10, 340, 360)]:
    print("two_shares", a, n, b, m, repr(float(proportions_ztest([a, b], [n, m])[1])))
for b, c in [(2, 8), (12, 12), (3, 21), (150, 86), (30, 31)]:
    print("mcnemar", b, c, repr(float(mcnemar([[0, b], [c, 0]], exact=b + c < 25, correction=True).pvalue)))
ps = [0.01, 0.04, 0.03, 0.005, 0.5]
print("holm", [float(p) for p in multipletests(ps, method="holm")[1]])
for a, b in [
    ([0.82, 0.83, 0.825], [0.84, 0.835, 0.85]),
    ([0.9, 0.95], [0.91, 0.93, 0.92, 0.9, 0.97]),
    ([0.5, 0.5, 0.5], [0.5, 0.51, 0.53]),
    ([0.7001, 0.7003, 0.7002, 0.7004], [0.8, 0.8002, 0.8001]),
]:
    print("welch", a, b, repr(float(ttest_ind(a, b, equal_var=False).pvalue)))
