// Writes what n2p2 computes for the potential and the structure of the current folder.
// Without scaling the symmetry functions and their derivatives, with scaling energies and forces.
// It needs that library, built as README.md says.

#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "Prediction.h"

using Rows = std::vector<nnp::Vec3D>;

static std::string symbol(const nnp::Prediction& p, const nnp::Atom& atom) {
    return p.elementMap[atom.element];
}

static void write_functions(const nnp::Prediction& p, const char* name) {
    FILE* file = fopen(name, "w");
    fprintf(file, "# index, element, neighbours, functions, values in the order of symfuncs.txt\n");
    for (const auto& atom : p.structure.atoms) {
        fprintf(file, "%zu %s %zu %zu", atom.index, symbol(p, atom).c_str(), atom.numNeighbors,
                atom.G.size());
        for (double value : atom.G) fprintf(file, " %.17e", value);
        fprintf(file, "\n");
    }
    fclose(file);
}

// Derivatives of the functions of an atom by the positions of all; periodic images move together.
static std::vector<Rows> by_positions(const nnp::Prediction& p, const nnp::Atom& atom) {
    std::vector<Rows> result(p.structure.atoms.size(), Rows(atom.G.size()));
    for (size_t k = 0; k < atom.G.size(); ++k) {
        result[atom.index][k] += atom.dGdr[k];
        for (const auto& n : atom.neighbors) result[n.index][k] += n.dGdr[k];
    }
    return result;
}

static void write_derivatives(const nnp::Prediction& p) {
    FILE* file = fopen("dGdr.txt", "w");
    fprintf(file, "# i, j, function of i from 0, its derivative by x, y, z of atom j\n");
    for (const auto& atom : p.structure.atoms) {
        const auto rows = by_positions(p, atom);
        for (size_t j = 0; j < rows.size(); ++j)
            for (size_t k = 0; k < atom.G.size(); ++k) {
                const nnp::Vec3D& v = rows[j][k];
                fprintf(file, "%zu %zu %zu %.17e %.17e %.17e\n", atom.index, j, k, v[0], v[1], v[2]);
            }
    }
    fclose(file);

    file = fopen("dGdstrain.txt", "w");
    fprintf(file, "# i, function of i from 0, sum_j dG_i/dr_j (x) r_ij: xx xy xz yx yy yz zx zy zz\n");
    for (const auto& atom : p.structure.atoms)
        for (size_t k = 0; k < atom.G.size(); ++k) {
            fprintf(file, "%zu %zu", atom.index, k);
            for (int a = 0; a < 3; ++a)
                for (int b = 0; b < 3; ++b) {
                    double sum = 0.0;
                    // n2p2's `dr` points from the neighbour to the atom
                    for (const auto& n : atom.neighbors) sum -= n.dGdr[k][a] * n.dr[b];
                    fprintf(file, " %.17e", sum);
                }
            fprintf(file, "\n");
        }
    fclose(file);
}

static void write_energies(const nnp::Prediction& p) {
    FILE* energies = fopen("atomic_energies.txt", "w");
    FILE* gradient = fopen("dEdG_scaled.txt", "w");
    FILE* forces = fopen("forces.txt", "w");
    fprintf(energies, "# index, element, raw network output\n");
    fprintf(gradient, "# index, element, functions, derivative by the scaled functions\n");
    fprintf(forces, "# index, element, position, force\n");
    // not n2p2's own sum: in a cell smaller than the cutoff it leaves out an atom's own images
    Rows force(p.structure.atoms.size());
    for (const auto& atom : p.structure.atoms) {
        const auto rows = by_positions(p, atom);
        for (size_t j = 0; j < rows.size(); ++j)
            for (size_t k = 0; k < atom.G.size(); ++k) force[j] -= atom.dEdG[k] * rows[j][k];
    }
    for (const auto& atom : p.structure.atoms) {
        const std::string z = symbol(p, atom);
        fprintf(energies, "%zu %s %.17e\n", atom.index, z.c_str(), atom.energy);
        fprintf(gradient, "%zu %s %zu", atom.index, z.c_str(), atom.dEdG.size());
        for (double value : atom.dEdG) fprintf(gradient, " %.17e", value);
        fprintf(gradient, "\n");
        fprintf(forces, "%zu %s %.17e %.17e %.17e %.17e %.17e %.17e\n", atom.index, z.c_str(),
                atom.r[0], atom.r[1], atom.r[2], force[atom.index][0], force[atom.index][1],
                force[atom.index][2]);
    }
    fclose(energies);
    fclose(gradient);
    fclose(forces);
    FILE* energy = fopen("energy.txt", "w");
    fprintf(energy, "energy_nnp %.17e\n", p.structure.energy);
    fclose(energy);
}

class Potential : public nnp::Prediction {
public:
    explicit Potential(bool scaled) {
        log.writeToStdout = false;
        if (scaled) {
            setup();
        } else {
            initialize();
            loadSettingsFile("input.nn");
            setupGeneric();
            setupSymmetryFunctionScalingNone();
            setupSymmetryFunctionStatistics(false, false, false, false);
        }
        readStructureFromFile("input.data");
        structure.calculateNeighborList(getMaxCutoffRadius());
        calculateSymmetryFunctions(structure, true);
    }
    void energies() {
        calculateAtomicNeuralNetworks(structure, true);
        calculateEnergy(structure);
        addEnergyOffset(structure, false);
    }
    void write_order() const {
        std::ofstream file("symfuncs.txt");
        for (const auto& element : elements)
            for (const auto& line : element.infoSymmetryFunctionParameters()) file << line;
    }
};

int main(int argc, char** argv) {
    Potential plain(false);
    write_functions(plain, "G_unscaled.txt");
    write_derivatives(plain);
    plain.write_order();
    if (argc > 1 && std::string(argv[1]) == "unscaled") return 0;
    Potential scaled(true);
    scaled.energies();
    write_functions(scaled, "G_scaled.txt");
    write_energies(scaled);
}
