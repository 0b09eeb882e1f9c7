// What every JavaScript program here needs: who is asked, the prompt, and the tool that it offers.

export const url = process.env.OUTRIGGER_URL;
export const model = process.env.OUTRIGGER_MODEL;
export const prompt = 'Look around with your shell, then say what you saw.';
// Nothing is run: the tool always says what the rehearsal's shell command would have printed.
export const toolResult = 'rehearsal-was-here';
export const schema = { type: 'object', properties: { command: { type: 'string' } }, required: ['command'] };

/** Prints the turn's text, or the exception as a program that does not catch it would show it. */
export async function run(turn) {
  try {
    console.log(await turn());
    process.exit(0);
  } catch (error) {
    console.log(`${error?.constructor?.name}: ${error?.message ?? error}`);
    process.exit(1);
  }
}
