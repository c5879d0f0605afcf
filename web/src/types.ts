/** What the API answers with. Names and shapes are the server's; NaN comes as null. */

export type Kind = "count" | "share" | "number" | "bits" | "token" | "latent" | "flag" | "cluster";

export interface Column {
  name: string;
  title: string;
  description: string;
  kind: Kind;
}

export interface Dictionary {
  key: string;
  run: string;
  sae: string;
  model: string;
  hook_point: string;
  target_hook_point: string;
  n_latents: number;
  n_tokens: number;
  n_documents: number;
  architecture: string;
  live: boolean;
  has_map: boolean;
  has_logits: boolean;
  /** What the index says its numbers were measured on, and their controls. */
  about?: {
    why_no_map?: string;
    why_no_logits?: string;
    map?: { method: string; by: string; trustworthiness: number; low: number; high: number; chance: number } | null;
    clusters?: { number: number; modularity: number; chance_modularity: number } | null;
    coactive?: { pmi: number; chance_pmi: number } | null;
    chance_cosine?: { decoder?: number | null; encoder?: number | null } | null;
    output_score?: { mean: number; chance: number } | null;
  };
  columns: Column[];
}

/** A comparison of a base model with its fine-tune. */
export interface Compared {
  name: string;
  base: string;
  tuned: string;
  hook_point: string;
  headline: string;
}

export interface Session {
  version: string;
  dictionaries: Dictionary[];
  comparisons: Compared[];
  unavailable?: { key: string; error: string; remedy?: string }[];
}

export interface Label {
  text: string;
  source: string;
  score: number | null;
  low: number | null;
  high: number | null;
  /** The same score with shuffled labels. */
  control?: number | null;
  n?: number | null;
}

export type Value = number | string | boolean | null;

export interface Row {
  latent: number;
  label: Label | null;
  promoted: string[];
  [column: string]: Value | Label | string[];
}

export interface Rows {
  total: number;
  offset: number;
  rows: Row[];
}

interface TestScore {
  value?: number | null;
  low?: number | null;
  high?: number | null;
  n?: number;
  n_active?: number;
  n_inactive?: number;
}

/** A label's test on passages that nobody had seen when it was written. */
export interface Falsified extends TestScore {
  score: number | TestScore | null;
  control?: number | TestScore | null;
  by?: string;
  fresh?: boolean;
  misses?: string[];
  false_alarms?: string[];
}

export interface TokenWeight {
  token: string;
  token_id: number;
  weight: number;
}

export interface Neighbour {
  latent: number;
  value: number;
  label: Label | null;
  promoted: string[];
}

export interface Coactive {
  latent: number;
  pmi: number | null;
  jaccard: number | null;
  label: Label | null;
  promoted: string[];
}

export interface Partner {
  cosine: number | null;
  cosine_latent: number | null;
  chance_cosine: number | null;
  correlation: number | null;
  correlation_latent: number | null;
}

export interface Feature {
  latent: number;
  columns: Record<string, Value>;
  /** What chance gives in place of a column. */
  chance?: Record<string, number | null>;
  label: Label | null;
  labels: Label[];
  note: string;
  lists: string[];
  histogram: { counts: number[]; maximum: number } | null;
  quantiles: [number, number][];
  promoted: TokenWeight[];
  suppressed: TokenWeight[];
  lift: { token: string; value: number }[];
  neighbours: { decoder: Neighbour[] | null; encoder: Neighbour[] | null };
  coactive: Coactive[] | null;
  position: { bins: number[]; baseline: number[]; names?: string[] } | null;
  partner: Partner | null;
  map: [number, number] | null;
  cluster: { id: number; size: number; name: string | null } | null;
  python: string;
  previous: number | null;
  next: number | null;
}

export interface Context {
  tokens: string[];
  values: (number | null)[];
  measured: boolean[];
  peak: number;
  value: number;
  document: number | string;
  position: number;
  folded: number;
}

export interface Band {
  low: number;
  high: number;
  n_active: number;
  contexts: Context[];
}

export interface Contexts {
  top: Context[];
  bands: Band[];
  random: Context[];
}

export interface Cluster {
  id: number;
  size: number;
  name: string | null;
  active_on: string[];
  latents: number[];
}

export interface LiveToken {
  token: string;
  special: boolean;
  error: number | null;
  l0: number | null;
  active: [number, number][];
}

export interface LiveText {
  tokens: LiveToken[];
  latents: Record<string, { label: Label | null; promoted: string[] }>;
}

/** Some of a text's tokens, and the latents that no line before named. */
export interface TextLine extends Partial<LiveText> {
  done?: boolean;
  error?: string;
}

export type Mode = "add" | "clamp" | "ablate" | "scale";
export type Unit = "p99" | "norm" | "raw";
export type Arm = "plain" | "steered" | "random" | "prompt";

export interface Edit {
  latent: number;
  mode: Mode;
  strength: number;
  unit: Unit;
}

export interface SteerRequest {
  prompt: string;
  edits: Edit[];
  scope: "both" | "prompt" | "generation";
  max_new_tokens: number;
  temperature: number;
  seed: number;
  controls: ("random" | "prompt")[];
}

export interface SteerLine {
  arm?: Arm;
  step?: number;
  token?: string;
  nll?: number | null;
  kl?: number | null;
  done?: boolean;
  random_latents?: number[];
  prompt_control?: string;
  error?: string;
}

export interface SweepPoint {
  strength: number;
  effect: number | null;
  random_effect?: number | null;
  nll: number | null;
  repetition: number | null;
  broken?: boolean;
  text: string;
}

export interface SweepLine extends Partial<SweepPoint> {
  done?: boolean;
  sweet_spot?: number | null;
  breaks_at?: number | null;
  nll_plain?: number | null;
  nll_limit?: number | null;
  random_latent?: number | null;
  error?: string;
}

export interface FeatureList {
  name: string;
  size: number;
  created: string | number;
}

export interface Estimate {
  value: number | null;
  low?: number | null;
  high?: number | null;
  n_tokens?: number;
  n_documents?: number;
  n_latents?: number;
}

export interface Evaluation {
  subject?: Record<string, Value>;
  methods?: { name: string; label: string; metrics: Record<string, Estimate> }[];
  verdicts?: { baseline: string; metric: string; difference: Estimate; seed_difference: number | null; outcome: string }[];
  notes?: string[];
  stability?: Record<string, Estimate | number[]> | null;
  [key: string]: unknown;
}

export interface RunFacts {
  recipe: string | null;
  manifest: Record<string, unknown> | null;
  evaluation: Evaluation | null;
  training: Record<string, number>[] | null;
  report: string | null;
}
