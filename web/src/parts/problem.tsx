import { Component, type ComponentChildren } from "preact";
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

/** What a mistake in one view leaves of the page: its line, and everything around it. */
export class Guarded extends Component<{ children: ComponentChildren }, { error: Error | null }> {
  override state = { error: null };

  override componentDidCatch(error: Error): void {
    console.error(error);
    this.setState({ error });
  }

  render() {
    const { error } = this.state;
    if (!error) return this.props.children;
    return <Problem error={new ApiError(`This view failed: ${(error as Error).message}`, 0, "It is a mistake of the page, not yours; the console says more.")} again={() => this.setState({ error: null })} />;
  }
}
