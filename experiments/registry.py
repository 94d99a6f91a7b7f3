"""All systems of the library in one table: paper, room, function, experiment, and the number to reach.

README's table is generated from this list and the committed results, see `experiments.report`. A system is built when
it has an experiment; the others say so in README. `published` quotes the paper (or, where marked, a second source);
`Headline` names the metric of a results file that is set beside it.
"""

import dataclasses

__all__ = ["SYSTEMS", "Headline", "System"]


@dataclasses.dataclass(frozen=True)
class Headline:
    """A published number and where ours is found.

    Attributes:
      value: the paper's number.
      unit: unit of both.
      result: file stem in `experiments/results`.
      variant: variant of the run.
      metric: metric of the run.
      higher_is_better: direction of the gap.
    """

    value: float
    unit: str
    result: str
    variant: str
    metric: str
    higher_is_better: bool = False


@dataclasses.dataclass(frozen=True)
class System:
    """One paper's system.

    Attributes:
      card: short name, unique.
      paper: title or common name, authors, year.
      arxiv: identifier.
      room: place of the code, relative to `equivariant_jax`.
      function: front-door function.
      published: the paper's headline in words.
      experiment: `room.name` of the launcher, empty while the system is not built.
      headline: the number that the table compares, if one is comparable.
    """

    card: str
    paper: str
    arxiv: str
    room: str
    function: str
    published: str
    experiment: str = ""
    headline: Headline | None = None


SYSTEMS: tuple[System, ...] = (
    # Rotations
    System(
        "gaunt_tensor_product",
        "Gaunt tensor products (Luo, Chen, Krishnapriyan 2024)",
        "2401.10216",
        "euclidean",
        "gaunt_tensor_product",
        "3BPA 300 K forces 9.2 meV/Å (MACE 8.8); AcAc 300 K forces: MACE 5.1 meV/Å",
        "euclidean.molecules",
        Headline(5.1, "meV/Å", "euclidean.molecules.acac", "gaunt", "test_300K/forces_rmse_meV_A"),
    ),
    System(
        "eqmotion",
        "EqMotion (Xu et al. 2023)",
        "2303.10876",
        "euclidean.motion",
        "eqmotion_apply",
        "ETH-UCY minADE20/minFDE20 0.21/0.35 m",
        "euclidean.motion",
    ),
    # Frames
    System(
        "frame_averaging",
        "Frame Averaging (Puny et al. 2021)",
        "2110.03336",
        "frames.averaging",
        "frame_average",
        "n-body MSE 0.0057 (unconfirmed)",
        "frames.nbody",
        Headline(5.7e-3, "MSE", "frames.nbody.cpu", "fa_gnn", "test_mse"),
    ),
    System(
        "tinvnn",
        "TinvNN (Zhang et al. 2021)",
        "2112.12345",
        "frames.distance_coordinates",
        "distance_coordinates",
        "no table could be confirmed; VN-DGCNN 90.0 % on rotated ModelNet40",
        "frames.shapes",
    ),
    # Lie groups
    System(
        "lie_group_decompositions",
        "Lie group decompositions (Mironenco, Forré 2024)",
        "2310.11366",
        "lie",
        "affine_group_conv",
        "affNIST accuracy above 97.69 % (abstract); later InvarLayer 98.45 %",
        "lie.affine_mnist",
    ),
    # Flows
    System(
        "flow_equivariant_rnn",
        "Flow-equivariant RNNs (Keller 2025)",
        "2507.14793",
        "flow.recurrent",
        "flow_scan",
        "Flowing MNIST V2: MSE 1.5e-4 (G-RNN 8.1e-3)",
        "flow.flowing_mnist",
    ),
    # Shifts and views
    System(
        "shift_equivariant_vit",
        "Shift-equivariant ViT (Ding et al. 2023)",
        "2306.07470",
        "vision.shift_vit",
        "shift_vit_apply",
        "100 % consistency under circular shifts",
        "vision.shifted_digits",
    ),
    System(
        "viat",
        "VIAT, viewpoint-adversarial training (Ruan et al. 2023)",
        "2307.10235",
        "vision.viewpoint",
        "viewpoint_attack",
        "ResNet-50 on adversarial views: 16 % to 31 % (read off a chart)",
    ),
    # Permutations: sets
    System(
        "learnable_commutative_monoids",
        "Learnable commutative monoids (Ong, Veličković 2022)",
        "2212.08541",
        "permutation.sets.monoids",
        "tree_reduce",
        "second minimum of 8-bit sets of 32: about 95 %",
    ),
    System(
        "inset",
        "INSET, superset-aware subset selection (Xie et al. 2024)",
        "2402.03139",
        "permutation.sets.subsets",
        "subset_posterior",
        "Amazon toys MJC 0.769 (unconfirmed)",
    ),
    System(
        "otseq2set",
        "OTSeq2Set (Cao, Zhang 2022)",
        "2210.14523",
        "permutation.sets.seq2set",
        "transport_set_loss",
        "Wiki10-31K micro-F1 +16.34 points over sequence baselines",
    ),
    System(
        "liquid_electrolyte",
        "BAMBOO-Mixer, liquid electrolytes (Yang et al. 2025)",
        "2504.18728",
        "permutation.sets.mixtures",
        "mixture_conductivity",
        "no figure could be confirmed",
    ),
    # Permutations: graphs
    System(
        "spen",
        "Subgraph permutation-equivariant networks (Mitton, Murray-Smith 2021)",
        "2111.11840",
        "permutation.graphs.subgraphs",
        "subgraph_network",
        "MUTAG 84.4 % (early version)",
    ),
    System(
        "icgnn_precoding",
        "ICGNN precoding (Sun et al. 2024)",
        "2408.17252",
        "permutation.graphs.precoding",
        "precoding_network",
        "paper's numbers not available; WMMSE 18.57 bit/s/Hz at 8x8, 10 dB",
    ),
    # Permutations: weight spaces
    System(
        "weight_matching_lmc",
        "Linear mode connectivity by weight matching (Ito et al. 2024)",
        "2402.04051",
        "permutation.weights.matching",
        "match_weights",
        "CIFAR-10 MLP barrier -0.098 (straight-through 0.296)",
    ),
    System(
        "lora_lego",
        "LoRA-LEGO (Zhao et al. 2024)",
        "2409.16167",
        "permutation.weights.low_rank",
        "merge_adapters",
        "9-task mean 62.21 (average of weights 47.17)",
    ),
    # Permutations: sequences
    System(
        "ptec",
        "PTEC, prompt-tuned embedding classification (Buchner et al. 2023)",
        "2309.12075",
        "permutation.sequences.labels",
        "label_head",
        "HateSpeech macro-F1 0.480 (Bloom-1b7)",
    ),
    System(
        "csi_bert2",
        "CSI-BERT2 (Zhao et al. 2024)",
        "2412.06861",
        "permutation.sequences.channel_state",
        "channel_transformer",
        "recovery MSE below CSI-BERT's 1.7326 (WiGesture)",
    ),
    System(
        "inverse_permutation",
        "Inverse permutation learning (Alur et al. 2025)",
        "2509.24125",
        "permutation.sequences.inverse",
        "inverse_permutation_transformer",
        "impossible for causal attention, possible with scratch space",
    ),
    System(
        "ntk_permutation_learning",
        "Exact learning of permutations in the NTK regime (Giapitzakis et al. 2025)",
        "2502.16763",
        "permutation.sequences.exact",
        "ensemble_prediction",
        "k = 30: 90 % exact with 175 networks",
    ),
    # Permutations: Cayley graphs, knowledge graphs
    System(
        "cayleypy_growth",
        "CayleyPy growth (Chervov et al. 2025)",
        "2509.19162",
        "permutation.cayley.growth",
        "growth",
        "601M-state coset graph in 42 s on one RTX 6000",
    ),
    System(
        "nfe_knowledge_graph",
        "NFE, knowledge graphs by normalizing flows (Xiao et al. 2023)",
        "2409.19977",
        "permutation.knowledge",
        "flow_score",
        "paper's tables not available; UMLS MRR 0.907 with the official model",
    ),
    # Generative models
    System(
        "gdss",
        "GDSS, graph generation by SDEs (Jo et al. 2022)",
        "2202.02514",
        "generative.graph_sde",
        "graph_score",
        "Grid MMD 0.111/0.005/0.070",
    ),
    System(
        "pard",
        "Pard, permutation-invariant autoregressive diffusion (Zhao et al. 2024)",
        "2402.03687",
        "generative.block_autoregressive",
        "block_diffusion",
        "QM9 validity 97.1 %",
    ),
    System(
        "cdvae",
        "CDVAE, crystals (Xie et al. 2021)",
        "2110.06197",
        "generative.crystals",
        "crystal_score",
        "Perov-5 match rate 97.52 %",
    ),
    System(
        "pfgmpp",
        "PFGM++ (Xu et al. 2023)",
        "2302.04265",
        "generative.poisson_flow",
        "poisson_flow_score",
        "CIFAR-10 FID 1.91 (EDM 1.98)",
    ),
    System(
        "medforj",
        "MedForj, brain MRI diffusion (Remedios et al. 2025)",
        "2510.26834",
        "generative.volumes",
        "volume_diffusion",
        "lower FID for velocity and flow than for sample (values not recovered)",
    ),
    # Self-supervision
    System(
        "sie",
        "SIE, split invariant-equivariant representations (Garrido et al. 2023)",
        "2302.10283",
        "self_supervised.split",
        "split_loss",
        "3DIEBench rotation R2 0.73",
    ),
    System(
        "seq_jepa",
        "seq-JEPA (Ghaemi et al. 2025)",
        "2505.03176",
        "self_supervised.sequence_jepa",
        "sequence_predictor",
        "3DIEBench top-1 87.41 %, relative rotation R2 0.71 (3 views, 5 at test)",
    ),
    # Learned and measured invariance
    System(
        "invariance_transfer",
        "Role of invariance in transfer (Speicher et al. 2024)",
        "2407.04325",
        "invariance.transfer",
        "invariance_score",
        "same minus disjoint transfer accuracy 0.12 to 0.15",
    ),
    System(
        "invariance_constrained_augmentation",
        "Invariance-constrained augmentation (Hounie et al. 2022)",
        "2209.15031",
        "invariance.constrained",
        "constrained_augmentation",
        "CIFAR-10, WRN-28-10: 97.85 %",
    ),
    System(
        "soft_equivariance",
        "Soft equivariance under mixed symmetries (Kim et al. 2023)",
        "2306.00356",
        "invariance.soft",
        "projection_penalty",
        "CMU walking 7.48e-2 MSE (third-party table)",
    ),
    System(
        "llvm_properties",
        "Order probes for vision-language models (Lee et al. 2024)",
        "2410.04751",
        "invariance.order_probes",
        "order_probe",
        "LLaVA-OneVision ChartQA 93.52 to 58.26 when tokens are shuffled",
    ),
    # Statistics
    System(
        "distance_covariance_fairness",
        "Distance-covariance fairness (Lee et al. 2025)",
        "2509.08163",
        "statistics.dependence",
        "joint_distance_covariance",
        "motor insurance JdCov 1.32e-3 to 5.3e-5",
    ),
    System(
        "mist",
        "MIST, learned mutual information (Gritsai et al. 2025)",
        "2511.18945",
        "statistics.mutual_information",
        "mutual_information",
        "MSE 0.34 at n = 100 to 300",
    ),
    System(
        "pac_invariant",
        "PAC bounds by invariant representations (Parulekar et al. 2022)",
        "2205.15196",
        "statistics.structural",
        "invariance_bound",
        "theory; no table",
    ),
    System(
        "slepian_iia",
        "Slepian-based persistency (Bengtsson, Podgórski 2024)",
        "2401.01805",
        "statistics.persistency",
        "persistency_exponent",
        "diffusion d = 1: 0.1203",
    ),
    System(
        "rpc_reasoning",
        "RPC, self-consistency of sampled reasoning (Zhou et al. 2025)",
        "2510.15444",
        "statistics.self_consistency",
        "perplexity_consistency",
        "MATH 51.95 (self-consistency 50.57)",
    ),
)
