"""L-BFGS against ASE's, structure by structure and step by step."""

import ase
import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms
from ase.optimize import LBFGS

from agedi.data.graph import AtomsGraph
from agedi.forcefield.config import LbfgsConfig
from agedi.forcefield.lbfgs import Evaluated, bounded, largest_force, make_lbfgs, make_relax

N = 8


def lj_energy(pos, present):
    """Lennard-Jones of a cluster, in ASE's units of the defaults epsilon = sigma = 1, without a cutoff."""
    pairs = pos[:, None] - pos[None]
    both = present[:, None] & present[None] & ~np.eye(len(pos), dtype=bool)
    inverse = jnp.where(both, 1 / jnp.where(both, jnp.sum(pairs**2, -1), 1.0), 0.0) ** 3
    return 2 * jnp.sum(inverse**2 - inverse)


def lj_force(params, graph):
    del params
    energy, gradient = jax.value_and_grad(lj_energy)(graph.pos, graph.present)
    return Evaluated(energy, -gradient, jnp.zeros((), bool))


def emt_force(params, graph):
    """ASE's EMT, called from inside the compiled loop."""
    del params
    shapes = jax.ShapeDtypeStruct((), graph.pos.dtype), jax.ShapeDtypeStruct(graph.pos.shape, graph.pos.dtype)

    def on_host(x, pos, cell, pbc):
        atoms = ase.Atoms(np.asarray(x), np.asarray(pos), cell=np.asarray(cell), pbc=np.asarray(pbc))
        atoms.calc = EMT()
        dtype = np.asarray(pos).dtype
        return np.asarray(atoms.get_potential_energy(), dtype), atoms.get_forces().astype(dtype)

    energy, forces = jax.pure_callback(on_host, shapes, *graph[:4], vmap_method="sequential")
    return Evaluated(energy, forces, jnp.zeros((), bool))


def as_graph(atoms: ase.Atoms, length: int) -> AtomsGraph:
    extra = length - len(atoms)
    fixed = np.zeros(len(atoms), bool)
    for constraint in atoms.constraints:
        fixed[constraint.index] = True
    return AtomsGraph(
        x=np.pad(atoms.numbers, (0, extra)).astype(np.int32),
        pos=np.pad(atoms.positions, ((0, extra), (0, 0))),
        cell=atoms.cell.array if atoms.cell.rank else np.eye(3),
        pbc=atoms.pbc,
        mask=np.pad(fixed, (0, extra)),
        present=np.arange(length) < len(atoms),
        confinement=np.array([-np.inf, np.inf]),
    )


def stacked(structures: list[ase.Atoms], length: int) -> AtomsGraph:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(as_graph(atoms, length) for atoms in structures))


def clusters() -> list[ase.Atoms]:
    """Distorted clusters of 4 to 8 atoms; the last has two fixed atoms."""
    rng = np.random.default_rng(0)
    made = []
    for count in (4, 6, 7, 8):
        grid = 1.15 * np.array([(i, j, k) for i in range(2) for j in range(2) for k in range(2)], float)[:count]
        made.append(ase.Atoms(f"Ar{count}", grid + rng.normal(0, 0.08, (count, 3))))
    made[-1].set_constraint(FixAtoms([1, 5]))
    return made


def asked_of_ase(atoms: ase.Atoms, calculator, steps: int, fmax: float = 0.05, **settings) -> list[np.ndarray]:
    """Every frame of ASE's relaxation."""
    atoms, frames = atoms.copy(), []
    atoms.calc = calculator
    optimizer = LBFGS(atoms, logfile=None, **settings)
    optimizer.attach(lambda: frames.append(atoms.positions.copy()))
    optimizer.run(fmax=fmax, steps=steps)
    return frames


@pytest.mark.parametrize("settings", [{}, {"memory": 5, "maxstep": 0.04, "damping": 0.7, "alpha": 40.0}])
def test_every_step_is_that_of_ase(settings):
    """To 1e-7 Å in double precision for 40 steps, after which rounding has grown."""
    names = {"maxstep": "max_step_size"}
    config = LbfgsConfig(steps=40, **{names.get(key, key): value for key, value in settings.items()})
    with jax.enable_x64(True):
        done, frames = make_relax(lj_force, config, trajectory=True)(None, stacked(clusters(), N))
    assert frames is not None
    for row, atoms in enumerate(clusters()):
        reference = asked_of_ase(atoms, LennardJones(rc=1e3, sigma=1.0, epsilon=1.0), 40, **settings)
        assert int(done.steps[row]) == len(reference) - 1
        ours = np.asarray(frames.pos[: len(reference), row, : len(atoms)])
        np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-7)
        forces = np.asarray(done.forces[row])[np.asarray(~done.graph.mask[row])]
        assert bool(done.converged[row]) == (np.linalg.norm(forces, axis=-1).max() < 0.05)


def test_copper_relaxes_as_with_ase():
    """A periodic crystal of eight atoms under EMT, in single precision: positions to 1e-3 Å, energy to 1e-4 eV."""
    atoms = ase.build.bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.rattle(0.15, seed=1)
    done, _ = make_relax(emt_force, LbfgsConfig())(None, jax.tree.map(jnp.asarray, stacked([atoms], N)))
    reference = asked_of_ase(atoms, EMT(), 200)
    assert int(done.steps[0]) == len(reference) - 1
    np.testing.assert_allclose(done.graph.pos[0], reference[-1], rtol=0, atol=1e-3)
    expected = ase.Atoms(atoms.numbers, reference[-1], cell=atoms.cell, pbc=True, calculator=EMT())
    assert float(done.energy[0]) == pytest.approx(expected.get_potential_energy(), abs=1e-4)


def test_fixed_atoms_and_padding_stay_bit_for_bit():
    before = stacked(clusters(), N)
    done, _ = make_relax(lj_force, LbfgsConfig(steps=20))(None, before)
    still = np.asarray(before.mask | ~before.present)
    np.testing.assert_array_equal(np.asarray(done.graph.pos)[still], np.asarray(before.pos)[still])
    moved = np.abs(np.asarray(done.graph.pos - before.pos)).max(-1)
    assert (moved[~still] > 1e-3).all()


def test_a_structure_that_is_done_no_longer_moves():
    """Together with others that go on, to the last bit; one with nothing to do takes no step."""
    relax = make_relax(lj_force, LbfgsConfig(steps=100))
    alone, _ = relax(None, stacked(clusters()[:1], N))
    together, _ = relax(None, stacked(clusters(), N))
    assert int(together.steps[0]) == int(alone.steps[0]) < int(together.steps.max())
    np.testing.assert_allclose(together.graph.pos[0], alone.graph.pos[0], rtol=0, atol=2e-5)
    again, _ = relax(None, together.graph)
    assert again.steps.tolist() == [0] * len(clusters())
    np.testing.assert_array_equal(again.graph.pos, together.graph.pos)


def test_one_force_call_a_step():
    calls = []

    def counted(params, graph):
        jax.debug.callback(lambda _: calls.append(1), graph.pos[0, 0])
        return lj_force(params, graph)

    done, _ = make_relax(counted, LbfgsConfig(steps=100))(None, stacked(clusters()[1:2], N))
    jax.effects_barrier()
    assert len(calls) == int(done.steps[0]) + 1 > 5


def test_too_many_neighbours_stop_a_structure_at_once():
    def crowded(params, graph):
        return lj_force(params, graph)._replace(overflow=jnp.sum(graph.present) > 6)

    before = stacked(clusters(), N)
    done, _ = make_relax(crowded, LbfgsConfig(steps=10))(None, before)
    assert done.overflow.tolist() == [False, False, True, True]
    assert done.steps.tolist()[2:] == [0, 0]
    assert done.steps[0] > 0


def test_a_quadratic_is_solved_in_as_many_steps_as_it_has_dimensions():
    """After d steps without a bound, L-BFGS with exact steps would be done; with unit steps it needs a few more."""
    curvatures = jnp.array([[3.0, 10.0, 80.0]])

    def spring(params, graph):
        force = -curvatures * graph.pos
        return Evaluated(-0.5 * jnp.sum(force * graph.pos), force, jnp.zeros((), bool))

    graph = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], as_graph(ase.Atoms("H", [[0.1, -0.1, 0.05]]), 1))
    with jax.enable_x64(True):
        done, _ = make_relax(spring, LbfgsConfig(fmax=1e-8, steps=50))(None, graph)
    assert done.converged.all()
    assert int(done.steps[0]) < 20
    assert float(jnp.abs(done.graph.pos).max()) < 1e-8


def test_no_forces_give_no_move():
    minimizer = make_lbfgs(LbfgsConfig())
    pos, still = jnp.ones((3, 3)), jnp.zeros((3, 3))
    move, history = minimizer.step(minimizer.init(pos), pos, still)
    move, _ = minimizer.step(history, pos, move)
    np.testing.assert_array_equal(move, still)


def test_a_step_is_bounded_by_the_atom_that_goes_furthest():
    move = jnp.array([[0.3, 0.4, 0.0], [0.0, 0.1, 0.0]])
    np.testing.assert_allclose(bounded(move, 0.2), move * 0.4, rtol=1e-6)
    np.testing.assert_array_equal(bounded(move, 0.6), move)
    assert float(largest_force(move)) == pytest.approx(0.5)
