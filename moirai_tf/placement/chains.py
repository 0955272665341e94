"""Chains of operators as one: fewer ways to cut a graph, and none that moves what nobody shares."""

from __future__ import annotations

from dataclasses import replace

from moirai_tf.placement.problem import BoolArray, Problem


def keep_chains(problem: Problem) -> Problem:
    """The problem with every chain of operators on one device.

    An operator goes on the chain of its producer if it is the only one that reads the producer and
    reads no other that takes time (linear clustering restricted to paths that nothing enters or
    leaves). Every schedule of the answer is one of the problem, not the other way round.

    Returns:
      The problem with more colocation; itself if no chain fits the colocation that it has.
    """
    runnable = problem.runnable
    takes_time = [any(ns for ns in o.compute_ns if ns) for o in problem.operators]
    chain_of: dict[int, int] = {}
    chains: list[list[int]] = []
    allowed: list[BoolArray] = []
    for operator in problem.topological_order:
        before = _only_neighbour(problem, operator, takes_time)
        chain = None if before is None else chain_of[before]
        if chain is None or not (allowed[chain] & runnable[operator]).any():
            chain = len(chains)
            chains.append([])
            allowed.append(runnable[operator])
        chains[chain].append(operator)
        allowed[chain] = allowed[chain] & runnable[operator]
        chain_of[operator] = chain
    groups = tuple(tuple(chain) for chain in chains if len(chain) > 1)
    if not groups:
        return problem
    chained = replace(problem, colocation=(*problem.colocation, *groups))
    return chained if all(chained.unit_devices) else problem


def _only_neighbour(problem: Problem, operator: int, takes_time: list[bool]) -> int | None:
    """The operator's only producer that takes time, if nothing else reads that one."""
    before = {problem.tensors[t].producer for t in problem.incoming[operator]}
    working = [producer for producer in before if takes_time[producer]]
    if len(working) != 1:
        return None
    readers = {c for t in problem.outgoing[working[0]] for c in problem.tensors[t].consumers}
    return working[0] if readers == {operator} else None
