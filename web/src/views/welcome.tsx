/** The first page: what is open, and how to read what the other pages show. */

import { comparedPath, pathOf } from "../api";
import { count } from "../format";
import { Marked } from "../parts/passage";
import { LabelText, Tokens } from "../parts/tokens";
import { seen } from "../state";
import type { Dictionary, Session } from "../types";

const EXAMPLE = { tokens: ["The", " answer", " was", " not", " yes", ",", " but", " nor", " was", " it", " no", "."], values: [0, 0, 0, 6.1, 0, 0, 2.4, 4.2, 0, 0, 3.3, 0] };

export function Welcome({ session, dictionary }: { session: Session; dictionary: Dictionary }) {
  const to = (d: Dictionary, view: string) => `/d${pathOf(d)}/${view}`;
  return (
    <article class="welcome">
      <h1>A language model's features, one by one</h1>
      <p class="lead">
        A sparse autoencoder rewrites each activation inside <b>{dictionary.model}</b> as a sum of a few of {count(dictionary.n_latents)} directions. Each direction is a <em>latent</em>; with the evidence of what it responds to and what it does, it is a <em>feature</em>. This page shows the evidence. It is served from your own machine and asks nobody else for anything.
      </p>
      <table class="plain dictionaries">
        <thead><tr><th>dictionary</th><th>read at</th><th>kind</th><th class="numeric">latents</th><th class="numeric">held-out tokens</th><th>here</th></tr></thead>
        <tbody>
          {session.dictionaries.map((d) => (
            <tr>
              <td><a href={to(d, "features")} onClick={() => seen.set(true)}><b>{d.key}</b></a></td>
              <td>{d.model}, {d.hook_point}{d.target_hook_point && d.target_hook_point !== d.hook_point && ` to ${d.target_hook_point}`}</td>
              <td>{d.architecture}</td>
              <td class="numeric">{count(d.n_latents)}</td>
              <td class="numeric">{count(d.n_tokens)}</td>
              <td class="dim">{["features", d.has_map && "map", d.live && "your text", d.live && "steering"].filter(Boolean).join(", ")}</td>
            </tr>
          ))}
        </tbody>
      </table>
      {session.comparisons.map((c) => (
        <p><a href={comparedPath(c)}><b>{c.name}</b></a>: {c.headline}</p>
      ))}
      {session.unavailable?.map((one) => (
        <p class="problem"><strong>{one.key} cannot be looked at now.</strong> {one.error} {one.remedy}</p>
      ))}
      <p><a class="button primary" href={to(dictionary, "features")} onClick={() => seen.set(true)}>Look at the features</a></p>

      <h2>How to read it</h2>
      <div class="legend-grid">
        <section>
          <h3>A passage</h3>
          <p class="whole sample"><Marked {...EXAMPLE} peak={3} maximum={6.1} /></p>
          <p>Text from documents that training never saw. The stronger the colour, the more active the feature on that token; hover for the number. The underlined token is the one the passage was chosen for. Line breaks are shown as ⏎.</p>
        </section>
        <section>
          <h3>Strongest beside random</h3>
          <p>The strongest passages flatter: they show a feature at its clearest. So as many passages drawn at random from all its activations stand beside them, and others from each band of strength below. If they disagree, trust the random ones.</p>
        </section>
        <section>
          <h3>A label and its score</h3>
          <p class="sample"><LabelText label={{ text: "negation", source: "person", score: 0.87, low: 0.81, high: 0.92 }} /></p>
          <p>✎ a person wrote it, ◆ a language model did, ≈ it was read off the numbers. The score is balanced accuracy at telling passages with the feature from passages without, on documents that the label was not made from: 0.5 is chance, 1 is perfect.</p>
        </section>
        <section>
          <h3>What it promotes</h3>
          <p class="sample"><Tokens tokens={[" not", " never", " nor", "n't"]} /></p>
          <p>The tokens whose probability its direction raises most. A dot stands for the space that a token begins with. What a feature responds to and what it promotes can differ.</p>
        </section>
        <section>
          <h3>Numbers with controls</h3>
          <p>Every metric under Run stands beside the same metric of a second seed, a frozen decoder, an untrained dictionary and PCA, with its interval. Steering runs beside matched random features and a plain prompt: an effect counts when it beats them.</p>
        </section>
        <section>
          <h3>Blind spots</h3>
          <p>Under Your text, each token is shaded by its error, |x − x̂| / |x|: the share of the activation that no feature explains. An explanation by features says nothing about that share.</p>
        </section>
      </div>

      <h2>Keys</h2>
      <p class="key-row"><kbd>j</kbd> <kbd>k</kbd> next, previous · <kbd>Enter</kbd> open · <kbd>/</kbd> search · <kbd>g</kbd> go to · <kbd>x</kbd> select · <kbd>e</kbd> label · <kbd>?</kbd> all of them</p>
      <p class="dim">Version {session.version}. Your labels, notes and lists are kept in the run's folder.</p>
    </article>
  );
}
