// A whole volume, a place and a window -> three planes through it, by NiiVue (WebGL2).
//
// Loaded when the planes are first asked for, so that the stack never waits for it. NiiVue draws the voxels;
// everything above them is ours. Knows nothing of findings or of the page.

import { Niivue, NVImage, SLICE_TYPE } from "@niivue/niivue";
import { VIEWS } from "./geometry.js";

const SLICE = { axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL, sagittal: SLICE_TYPE.SAGITTAL };

export class Planes {
  static async on(canvas) {
    const planes = new Planes();
    planes.niivue = new Niivue({
      logLevel: "error",
      interactive: false,
      dragAndDropEnabled: false,
      isResizeCanvas: false,
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      isOrientationTextVisible: false,
      crosshairWidth: 0,
      isColorbar: false,
      loadingText: "",
      backColor: [0, 0, 0, 1],
    });
    await planes.niivue.attachToCanvas(canvas, false);
    return planes;
  }

  async show(volume, window) {
    if (this.volume === volume) return;
    const niivue = this.niivue;
    for (const old of [...niivue.volumes]) niivue.removeVolume(old);
    const image = await NVImage.new(volume.bytes.buffer, "series.nii", "gray", 1, null, window.low, window.high);
    niivue.addVolume(image);
    this.volume = volume;
    this.window = { ...window };
  }

  /** Each pane holds its whole picture, edge to edge, so that what is drawn above fits. */
  draw(panes, fraction, window) {
    const niivue = this.niivue;
    const { width, height } = niivue.canvas;
    if (window.low !== this.window.low || window.high !== this.window.high) {
      this.window = { ...window };
      const [image] = niivue.volumes;
      image.cal_min = window.low;
      image.cal_max = window.high;
      niivue.updateGLVolume();
    }
    niivue.scene.crosshairPos = [...fraction];
    niivue.setCustomLayout(
      panes.map((pane) => ({
        sliceType: SLICE[VIEWS[pane.axis]],
        position: [pane.left / width, pane.top / height, pane.width / width, pane.height / height],
      })),
    );
  }
}
