import { ApiError } from "../api";

/** An error where its content would have been: what happened, and the remedy. */
export function Problem({ error, again }: { error: Error; again?: () => void }) {
  const remedy = error instanceof ApiError ? error.remedy : "";
  return (
    <div class="problem" role="alert">
      <p><strong>{error.message}</strong></p>
      {remedy && <p>{remedy}</p>}
      {again && <button onClick={again}>Try again</button>}
    </div>
  );
}
