/** One feature with its evidence: strongest passages beside random ones, numbers, relatives, and a box to try it. */

import { useEffect, useRef, useState } from "preact/hooks";
import { api, ApiError, pathOf } from "../api";
import { Histogram } from "../charts/histogram";
import { Positions } from "../charts/positions";
import { count, figure, interval, percent, show } from "../format";
import { useKeys } from "../keys";
import { MapInset } from "../map/inset";
import { ListPicker } from "../parts/listpicker";
import { Passage } from "../parts/passage";
import { Problem } from "../parts/problem";
import { Gist, labelHint, sourceOf, Token, Words } from "../parts/tokens";
import { complain, say } from "../parts/toasts";
import { Weights } from "../parts/weights";
import { go } from "../router";
import { addEdit, aligned, walk } from "../state";
import { useLoad, useStore } from "../store";
import type { Contexts, Dictionary, Falsified, Feature, Label } from "../types";
import { TryIt } from "./tryit";

export function FeaturePage({ dictionary, latent }: { dictionary: Dictionary; latent: number }) {
  const valid = Number.isInteger(latent) && latent >= 0 && latent < dictionary.n_latents;
  const feature = useLoad(valid ? `${dictionary.key} ${latent}` : null, () => api.feature(dictionary, latent));
  const contexts = useLoad(valid ? `${dictionary.key} ${latent}` : null, () => api.contexts(dictionary, latent));
  const [picking, setPicking] = useState(false);
  const [writing, setWriting] = useState(false);
  const data = feature.data;
  const step = useSteps(dictionary, data);

  useEffect(() => setWriting(false), [latent]);
  useEffect(() => {
    const next = data?.next;
    if (next !== null && next !== undefined && !walk.get()) void api.feature(dictionary, next).catch(() => {});
  }, [data]);
  useKeys({
    j: () => step(1),
    k: () => step(-1),
    u: () => go(`/d${pathOf(dictionary)}/features${walk.get() ? `?${walk.get()!.query}` : ""}`),
    e: () => setWriting(true),
    s: () => aside(),
  });
  const aside = () => {
    addEdit(dictionary, latent);
    say(`Latent ${latent} waits in Steer.`);
  };

  if (!valid) return <Problem error={new ApiError(`There is no such latent; they are numbered 0 to ${count(dictionary.n_latents - 1)}.`, 404)} />;
  if (feature.error) return <Problem error={feature.error} again={feature.again} />;
  if (!data) return <p class="waiting">Reading…</p>;
  const here = walk.get();
  return (
    <article class="feature" aria-busy={feature.loading}>
      <header class="feature-head">
        <div class="steps">
          <button class="quiet icon" onClick={() => step(-1)} aria-label="Previous feature" data-hint="Previous (k)">←</button>
          <button class="quiet icon" onClick={() => step(1)} aria-label="Next feature" data-hint="Next (j)">→</button>
        </div>
        <h1><span class="dim">latent</span> {data.latent}</h1>
        <LabelBox dictionary={dictionary} feature={data} writing={writing} setWriting={setWriting} again={feature.again} />
        <div class="actions">
          {dictionary.live && <button onClick={aside} data-hint="Put aside for steering (s)">Steer</button>}
          <button onClick={() => setPicking(true)}>List…</button>
          <button
            onClick={() => navigator.clipboard.writeText(data.python).then(() => say("Copied: Python that opens this feature."), () => say("The browser does not let the page copy.", true))}
            data-hint={data.python}
          >
            Copy as Python
          </button>
        </div>
      </header>
      {here && here.key === dictionary.key && here.index >= 0 && (
        <p class="trail"><a href={`/d${pathOf(dictionary)}/features?${here.query}`}>table</a> row {count(here.index + 1)} of {count(here.total)}</p>
      )}
      <Numbers dictionary={dictionary} feature={data} />
      <div class="feature-body">
        <div class="evidence">
          <Evidence dictionary={dictionary} feature={data} contexts={contexts.data} error={contexts.error} />
          {dictionary.live && <TryIt dictionary={dictionary} latent={data.latent} maximum={data.histogram?.maximum ?? 1} />}
        </div>
        <aside class="rail">
          <Rail dictionary={dictionary} feature={data} again={feature.again} />
        </aside>
      </div>
      {picking && <ListPicker dictionary={dictionary} latents={[data.latent]} close={(added) => (setPicking(false), added && feature.again())} />}
    </article>
  );
}

/** The next or previous feature: in the order of the table it was opened from, else by number. */
function useSteps(dictionary: Dictionary, data: Feature | null) {
  return async (by: number) => {
    const here = walk.get();
    if (here && here.key === dictionary.key) {
      const index = here.index + by;
      if (index < 0 || index >= here.total) return say(by > 0 ? "That was the last one." : "That was the first one.");
      try {
        const { rows } = await api.features(dictionary, here.query, index, 1);
        walk.set({ ...here, index });
        if (rows[0]) go(`/d${pathOf(dictionary)}/feature/${rows[0].latent}`, true);
      } catch (error) {
        complain(error as Error);
      }
      return;
    }
    const to = by > 0 ? data?.next : data?.previous;
    if (to === null || to === undefined) say(by > 0 ? "That was the last one." : "That was the first one.");
    else go(`/d${pathOf(dictionary)}/feature/${to}`, true);
  };
}

interface LabelBoxProps {
  dictionary: Dictionary;
  feature: Feature;
  writing: boolean;
  setWriting: (on: boolean) => void;
  again: () => void;
}

function LabelBox({ dictionary, feature, writing, setWriting, again }: LabelBoxProps) {
  const field = useRef<HTMLInputElement>(null);
  const [busy, setBusy] = useState(false);
  const [verdict, setVerdict] = useState<Falsified | null>(null);
  useEffect(() => void (writing && field.current?.select()), [writing]);
  useEffect(() => setVerdict(null), [feature.latent]);
  const mine = feature.labels.find((label) => label.source === "person");
  const act = async (what: Promise<unknown>, done: string) => {
    setBusy(true);
    try {
      await what;
      say(done);
      setWriting(false);
      again();
    } catch (error) {
      complain(error as Error);
    }
    setBusy(false);
  };
  if (writing)
    return (
      <form
        class="label-box inline"
        onSubmit={(event) => {
          event.preventDefault();
          const text = field.current!.value.trim();
          if (text) void act(api.setLabel(dictionary, feature.latent, text), "Label kept.");
        }}
      >
        <input ref={field} class="grow" aria-label="Label" maxLength={300} defaultValue={mine?.text ?? feature.label?.text ?? ""} onKeyDown={(event) => event.key === "Escape" && setWriting(false)} />
        <button class="primary" disabled={busy}>Keep</button>
        {mine && <button type="button" disabled={busy} onClick={() => void act(api.deleteLabel(dictionary, feature.latent), "Label deleted.")}>Delete</button>}
        <button type="button" class="quiet" onClick={() => setWriting(false)}>Cancel</button>
      </form>
    );
  const label = feature.label;
  return (
    <div class="label-box">
      {label ? <p class="title"><Words text={label.text} /></p> : <p class="title dim">no label yet</p>}
      <p class="byline">
        {label && <span data-hint={labelHint(label)}><i class={`source ${label.source.split(":")[0]}`}>{sourceOf(label).mark}</i> {sourceOf(label).name}{label.score !== null && `, score ${interval(label.score, label.low, label.high, 2)}`}</span>}
        <button class="link" onClick={() => setWriting(true)} data-hint="e">{mine ? "change" : "write your own"}</button>
        {label && (
          <button
            class="link"
            disabled={busy}
            data-hint="Tests the label on passages that nobody looked at when it was written"
            onClick={async () => {
              setBusy(true);
              try {
                setVerdict(await api.falsify(dictionary, feature.latent, label.text));
              } catch (error) {
                complain(error as Error);
              }
              setBusy(false);
            }}
          >
            {busy ? "testing…" : "try to falsify it"}
          </button>
        )}
        {feature.labels.filter((one) => one.text !== label?.text).map((one) => <OtherLabel label={one} />)}
      </p>
      {verdict && <Verdict found={verdict} />}
    </div>
  );
}

const OtherLabel = ({ label }: { label: Label }) => (
  <span class="other" data-hint={labelHint(label)}><i class={`source ${label.source.split(":")[0]}`}>{sourceOf(label).mark}</i> <Words text={label.text} /></span>
);

/** How a label stood its test: its score, another latent's label's on the same passages, and where it was wrong. */
function Verdict({ found }: { found: Falsified }) {
  const score = scored(found.score, found);
  const control = scored(found.control);
  const misses = found.misses ?? [];
  const alarms = found.false_alarms ?? [];
  return (
    <div class="verdict" role="status">
      <p>
        {score.value === null ? "too few passages to say" : <>balanced accuracy <b>{interval(score.value, score.low, score.high, 2)}</b></>}
        {control.value !== null ? `, another label on the same passages ${interval(control.value, control.low, control.high, 2)}` : ", chance 0.50"}
        {score.n ? `, ${count(score.n)} passages` : ""}
        {found.fresh === false && "; too few passages were left that no test had shown, so these are not fresh"}
        {found.by && <span class="dim">; judged by {found.by === "rule" ? "the tokens it names" : found.by}</span>}
      </p>
      {[["It says no, the feature is active", misses] as const, ["It says yes, the feature is not active", alarms] as const].map(
        ([title, passages]) => passages.length > 0 && (
          <details><summary>{title}: {passages.length}</summary><ul>{passages.slice(0, 20).map((passage) => <li class="whole" dir="auto">{passage}</li>)}</ul></details>
        ),
      )}
    </div>
  );
}

type Scored = { value: number | null; low: number | null; high: number | null; n: number };

/** A score comes as a number with its interval beside it, or as an object of its own. */
function scored(score: Falsified["score"] | undefined, beside?: Falsified): Scored {
  if (typeof score === "object" && score !== null) {
    const n = score.n ?? (score.n_active ?? 0) + (score.n_inactive ?? 0);
    return { value: score.value ?? null, low: score.low ?? null, high: score.high ?? null, n };
  }
  return { value: score ?? null, low: beside?.low ?? null, high: beside?.high ?? null, n: beside?.n ?? 0 };
}

function Numbers({ dictionary, feature }: { dictionary: Dictionary; feature: Feature }) {
  const chance: Record<string, number | null> | undefined = dictionary.about?.output_score ? { output_score: dictionary.about.output_score.chance, ...feature.chance } : feature.chance;
  return (
    <dl class="numbers">
      {dictionary.columns.filter((column) => column.name !== "cluster" && !(column.kind === "flag" && !feature.columns[column.name])).map((column) => {
        const value = feature.columns[column.name];
        return (
          <div data-hint={column.description}>
            <dt>{column.title}</dt>
            <dd>
              {column.kind === "token" && typeof value === "string" ? <Token text={value} /> : show(value, column.kind)}
              {typeof chance?.[column.name] === "number" && value !== null && <span class="chance" data-hint="What chance gives in its place">chance {show(chance[column.name], column.kind)}</span>}
            </dd>
          </div>
        );
      })}
    </dl>
  );
}

interface EvidenceProps {
  dictionary: Dictionary;
  feature: Feature;
  contexts: Contexts | null;
  error: Error | null;
}

function Evidence({ feature, contexts, error }: EvidenceProps) {
  const inline = useStore(aligned);
  const [range, setRange] = useState<[number, number] | null>(null);
  useEffect(() => setRange(null), [feature.latent]);
  const maximum = feature.histogram?.maximum ?? 1;
  if (error) return <Problem error={error} />;
  if (contexts && !contexts.top.length) return <p class="empty">It was never active on the held-out tokens, so there are no passages to show.</p>;
  const toBand = (value: number) => {
    const at = contexts?.bands.findIndex((band) => value >= band.low && value <= band.high) ?? -1;
    if (at < 0) return;
    setRange([contexts!.bands[at]!.low, contexts!.bands[at]!.high]);
    document.getElementById(`band-${at}`)?.scrollIntoView({ behavior: "smooth", block: "nearest" });
  };
  return (
    <>
      {feature.histogram && <Histogram counts={feature.histogram.counts} maximum={maximum} quantiles={feature.quantiles} range={range} choose={toBand} />}
      <div class="passages-head">
        <div class="segmented" role="group" aria-label="Layout of passages">
          <button aria-pressed={inline} onClick={() => aligned.set(true)}>aligned</button>
          <button aria-pressed={!inline} onClick={() => aligned.set(false)}>whole</button>
        </div>
        <span class="dim">hover for values; a click on the number unfolds</span>
      </div>
      {contexts && (
        <>
          <div class="pair">
            <PassageList title="Strongest" hint="The strongest activation of each document, strongest first" list={contexts.top} maximum={maximum} inline={inline} />
            <PassageList title="At random" hint="Drawn at random from all its activations: what it usually is, beside what it is at its strongest" list={contexts.random} maximum={maximum} inline={inline} />
          </div>
          <h3 class="bands-title">From strong to weak</h3>
          {contexts.bands.map((band, i) => ({ band, i })).sort((a, b) => b.band.high - a.band.high).map(({ band, i }) => (
            <section id={`band-${i}`} class={`band${range?.[0] === band.low ? " chosen" : ""}`} onPointerEnter={() => setRange([band.low, band.high])} onPointerLeave={() => setRange(null)}>
              <h4>{figure(band.low)} to {figure(band.high)} <span class="dim">{count(band.n_active)} {band.n_active === 1 ? "activation" : "activations"}</span></h4>
              <ul class="passages">{band.contexts.map((context) => <Passage context={context} maximum={maximum} aligned={inline} />)}</ul>
            </section>
          ))}
        </>
      )}
    </>
  );
}

interface PassageListProps {
  title: string;
  hint: string;
  list: Contexts["top"];
  maximum: number;
  inline: boolean;
}

const PassageList = ({ title, hint, list, maximum, inline }: PassageListProps) => (
  <section>
    <h3 data-hint={hint}>{title}</h3>
    <ul class="passages">{list.map((context) => <Passage key={`${context.document} ${context.position}`} context={context} maximum={maximum} aligned={inline} />)}</ul>
  </section>
);

function Rail({ dictionary, feature, again }: { dictionary: Dictionary; feature: Feature; again: () => void }) {
  const { promoted, suppressed, lift, neighbours, coactive, position, partner } = feature;
  const about = dictionary.about;
  const beside = (value: number | null | undefined) => (typeof value === "number" ? ` By chance ${figure(value, 2)}.` : "");
  const link = (latent: number) => `/d${pathOf(dictionary)}/feature/${latent}`;
  return (
    <>
      {dictionary.has_logits ? (
        <section>
          <div class="pair tight">
            <div><h3 data-hint="Tokens whose logits its direction raises most, read straight off the unembedding">Promotes</h3><Weights items={promoted.map(({ token, weight }) => ({ token, value: weight }))} /></div>
            <div><h3 data-hint="Tokens whose logits its direction lowers most">Suppresses</h3><Weights items={suppressed.map(({ token, weight }) => ({ token, value: weight }))} /></div>
          </div>
        </section>
      ) : (
        <section><h3>Promotes</h3><p class="dim">Not stored: the index was built without the language model's head.</p></section>
      )}
      {lift?.length > 0 && <section><h3 data-hint="Tokens that follow it more often than they follow any token, as log2 of the ratio, in the held-out text">What comes next (bits of lift)</h3><Weights items={lift.map(({ token, value }) => ({ token, value }))} /></section>}
      {position && <section><h3 data-hint="How often it is active at each position of a document, relative to how many tokens are there">Position in the document</h3><Positions {...position} /></section>}
      <Relatives title="Nearest directions" hint={`Cosine with other latents' decoder directions.${beside(about?.chance_cosine?.decoder)}`} link={link} items={neighbours?.decoder?.map((one) => ({ ...one, shown: figure(one.value, 2) }))} />
      <Relatives title="Nearest detectors" hint={`Cosine with other latents' encoder directions.${beside(about?.chance_cosine?.encoder)}`} link={link} items={neighbours?.encoder?.map((one) => ({ ...one, shown: figure(one.value, 2) }))} folded />
      <Relatives title="Active together" hint={`Latents active on the same tokens more often than chance: pointwise mutual information, bits.${about?.coactive ? ` Mean of the nearest ${figure(about.coactive.pmi, 2)}; by chance ${figure(about.coactive.chance_pmi, 2)}.` : ""}`} link={link} items={coactive?.map((one) => ({ ...one, shown: figure(one.pmi, 2), hint: `PMI ${figure(one.pmi)} bits, Jaccard ${figure(one.jaccard)}` }))} />
      {partner && (
        <section>
          <h3 data-hint="The same SAE trained from another seed: features that it has too are less likely to be accidents">In the second seed</h3>
          <p class="figures">
            nearest direction: cosine <b>{figure(partner.cosine, 2)}</b> <span class="dim">chance {figure(partner.chance_cosine, 2)}, its latent {partner.cosine_latent}</span>
            {partner.correlation !== null && <><br />most alike in activity: r = <b>{figure(partner.correlation, 2)}</b> <span class="dim">its latent {partner.correlation_latent}</span></>}
          </p>
        </section>
      )}
      {feature.map && dictionary.has_map && (
        <section>
          <h3>On the map</h3>
          <MapInset dictionary={dictionary} latent={feature.latent} />
          {feature.cluster && <p class="figures"><a href={`/d${pathOf(dictionary)}/features?cluster=${feature.cluster.id}`}>{feature.cluster.name || `cluster ${feature.cluster.id}`}</a> <span class="dim">{count(feature.cluster.size)} features</span></p>}
        </section>
      )}
      <Note dictionary={dictionary} feature={feature} />
      {feature.lists.length > 0 && (
        <section>
          <h3>Lists</h3>
          <p class="chips">
            {feature.lists.map((name) => (
              <span class="chip">
                <a href={`/d${pathOf(dictionary)}/features?list=${encodeURIComponent(name)}`}>{name}</a>{" "}
                <button class="quiet icon" aria-label={`Remove from ${name}`} onClick={() => api.removeFromList(dictionary, name, [feature.latent]).then(again, complain)}>×</button>
              </span>
            ))}
          </p>
        </section>
      )}
      <section class="fine">
        <p class="dim">{percent(Number(feature.columns.density ?? NaN))} of {count(dictionary.n_tokens)} held-out tokens, {count(dictionary.n_documents)} documents that training never saw.</p>
      </section>
    </>
  );
}

interface Relative {
  latent: number;
  label: Label | null;
  promoted: string[];
  shown: string;
  hint?: string;
}

function Relatives({ title, hint, items, link, folded }: { title: string; hint: string; items?: Relative[]; link: (latent: number) => string; folded?: boolean }) {
  if (!items?.length) return null;
  return (
    <section>
      <details open={!folded}>
        <summary><h3 data-hint={hint}>{title}</h3></summary>
        <ol class="relatives">
          {items.map((one) => (
            <li>
              <a href={link(one.latent)}><span class="id">{one.latent}</span> <Gist of={one} /></a>
              <span class="num" data-hint={one.hint}>{one.shown}</span>
            </li>
          ))}
        </ol>
      </details>
    </section>
  );
}

function Note({ dictionary, feature }: { dictionary: Dictionary; feature: Feature }) {
  const [text, setText] = useState(feature.note);
  const [state, setState] = useState("");
  const timer = useRef(0);
  const waiting = useRef<string | null>(null);
  const keep = () => {
    clearTimeout(timer.current);
    const value = waiting.current;
    if (value === null) return;
    waiting.current = null;
    api.setNote(dictionary, feature.latent, value).then(() => setState("kept"), (error) => (setState("not kept"), complain(error)));
  };
  useEffect(() => {
    setText(feature.note);
    setState("");
    return keep; // what was typed is kept, also when one steps on at once
  }, [feature.latent]);
  return (
    <section>
      <h3>Notes <span class="dim">{state}</span></h3>
      <textarea
        rows={3}
        aria-label="Notes"
        maxLength={10000}
        placeholder="What you saw. Kept beside the run."
        value={text}
        onInput={(event) => {
          const value = event.currentTarget.value;
          setText(value);
          setState("…");
          waiting.current = value;
          clearTimeout(timer.current);
          timer.current = window.setTimeout(keep, 600);
        }}
        onBlur={keep}
      />
    </section>
  );
}
